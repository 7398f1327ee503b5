"""Where ggml puts each field of a block: `pack_*` writes the fields of n blocks as bytes, `unpack_*` reads them back.

Codes are uint8, one per weight in the order of the row; scales `d` and `m`/`dmin` are float16 [n, 1].
Layouts: ggml-common.h, ggml-quants.c.
"""

import torch
from torch import Tensor


def half_bytes(x: Tensor) -> Tensor:
    """float16 [n, 1] → uint8 [n, 2]."""
    return x.contiguous().view(torch.uint8)


def half(data: Tensor) -> Tensor:
    """uint8 [n, 2] → float16 [n, 1]."""
    return data.contiguous().view(torch.float16)


def pack_nibbles(codes: Tensor, run: int) -> Tensor:
    """Codes 0..15 [n, k] → [n, k/2]: in each 2·run weights the first `run` take the low nibbles, the others the high ones."""
    pairs = codes.view(len(codes), -1, 2, run)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).view(len(codes), -1)


def unpack_nibbles(data: Tensor, run: int) -> Tensor:
    """The inverse of `pack_nibbles`."""
    runs = data.view(len(data), -1, 1, run)
    return torch.cat((runs & 15, runs >> 4), dim=2).view(len(data), -1)


def pack_planes(bits: Tensor, width: int) -> Tensor:
    """Values of `width` bits [n, p, 32] (p = 8 / width planes) → [n, 32]: plane i at bit i·width."""
    out = bits[:, 0].clone()
    for plane in range(1, 8 // width):
        out |= bits[:, plane] << (plane * width)
    return out


def unpack_planes(data: Tensor, width: int) -> Tensor:
    """[n, 32] → [n, p, 32]: the inverse of `pack_planes`."""
    return torch.stack([(data >> shift) & ((1 << width) - 1) for shift in range(0, 8, width)], dim=1)


def pack_bit32(bits: Tensor) -> Tensor:
    """Bits [n, 32] → the bytes of one little-endian uint32 [n, 4]."""
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return (bits.view(-1, 4, 8) * weights).sum(dim=2, dtype=torch.uint8)


def unpack_bit32(data: Tensor) -> Tensor:
    """The inverse of `pack_bit32`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
    return ((data[:, :, None] >> shifts) & 1).view(-1, 32)


def pack_scale_min(sc: Tensor, m: Tensor) -> Tensor:
    """Eight 6-bit scales and eight 6-bit minima, uint8 [n, 8] each → [n, 12] (Q4_K, Q5_K)."""
    low = sc[:, :4] | ((sc[:, 4:] >> 4) << 6)
    middle = m[:, :4] | ((m[:, 4:] >> 4) << 6)
    high = (sc[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)
    return torch.cat((low, middle, high), dim=1)


def unpack_scale_min(data: Tensor) -> tuple[Tensor, Tensor]:
    """[n, 12] → scales and minima, uint8 [n, 8] each."""
    low, middle, high = data[:, :4], data[:, 4:8], data[:, 8:]
    sc = torch.cat((low & 63, (high & 15) | ((low >> 6) << 4)), dim=1)
    m = torch.cat((middle & 63, (high >> 4) | ((middle >> 6) << 4)), dim=1)
    return sc, m


def pack_q4_k(d: Tensor, dmin: Tensor, sc: Tensor, m: Tensor, codes: Tensor) -> Tensor:
    return torch.cat((half_bytes(d), half_bytes(dmin), pack_scale_min(sc, m), pack_nibbles(codes, 32)), dim=1)


def unpack_q4_k(data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sc, m = unpack_scale_min(data[:, 4:16])
    return half(data[:, :2]), half(data[:, 2:4]), sc, m, unpack_nibbles(data[:, 16:], 32)


def pack_q5_k(d: Tensor, dmin: Tensor, sc: Tensor, m: Tensor, codes: Tensor) -> Tensor:
    high = pack_planes((codes >> 4).view(-1, 8, 32), 1)
    return torch.cat((half_bytes(d), half_bytes(dmin), pack_scale_min(sc, m), high, pack_nibbles(codes & 15, 32)), dim=1)


def unpack_q5_k(data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sc, m = unpack_scale_min(data[:, 4:16])
    high = unpack_planes(data[:, 16:48], 1).view(len(data), -1)
    return half(data[:, :2]), half(data[:, 2:4]), sc, m, unpack_nibbles(data[:, 48:], 32) | (high << 4)


def pack_q6_k(d: Tensor, sc: Tensor, codes: Tensor) -> Tensor:
    """`sc` int8 [n, 16]; codes 0..63."""
    low = pack_nibbles(codes & 15, 64)
    high = pack_planes((codes >> 4).view(-1, 4, 32), 2).view(len(codes), -1)
    return torch.cat((low, high, sc.view(torch.uint8), half_bytes(d)), dim=1)


def unpack_q6_k(data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    high = unpack_planes(data[:, 128:192].reshape(-1, 32), 2).view(len(data), -1)
    codes = unpack_nibbles(data[:, :128], 64) | (high << 4)
    return half(data[:, 208:]), data[:, 192:208].contiguous().view(torch.int8), codes


def pack_q2_k(d: Tensor, dmin: Tensor, sc: Tensor, m: Tensor, codes: Tensor) -> Tensor:
    """`sc` and `m` 0..15 [n, 16]; codes 0..3."""
    low = pack_planes(codes.view(-1, 4, 32), 2).view(len(codes), -1)
    return torch.cat((sc | (m << 4), low, half_bytes(d), half_bytes(dmin)), dim=1)


def unpack_q2_k(data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    codes = unpack_planes(data[:, 16:80].reshape(-1, 32), 2).view(len(data), -1)
    return half(data[:, 80:82]), half(data[:, 82:]), data[:, :16] & 15, data[:, :16] >> 4, codes


def pack_q3_k(d: Tensor, sc: Tensor, codes: Tensor) -> Tensor:
    """`sc` int8 −32..31 [n, 16]; codes 0..7."""
    high = pack_planes((codes >> 2).view(-1, 8, 32), 1)
    low = pack_planes((codes & 3).view(-1, 4, 32), 2).view(len(codes), -1)
    shifted = (sc + 32).view(torch.uint8)
    top = (shifted >> 4).view(-1, 4, 4)
    tops = top[:, 0] | (top[:, 1] << 2) | (top[:, 2] << 4) | (top[:, 3] << 6)
    return torch.cat((high, low, pack_nibbles(shifted & 15, 8), tops, half_bytes(d)), dim=1)


def unpack_q3_k(data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tops = torch.cat([(data[:, 104:108] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=1)
    sc = (unpack_nibbles(data[:, 96:104], 8) | (tops << 4)).view(torch.int8) - 32
    low = unpack_planes(data[:, 32:96].reshape(-1, 32), 2).view(len(data), -1)
    high = unpack_planes(data[:, :32], 1).view(len(data), -1)
    return half(data[:, 108:]), sc, low | (high << 2)


def pack_iq4_xs(d: Tensor, sc: Tensor, codes: Tensor) -> Tensor:
    """`sc` int8 −32..31 [n, 8]; codes 0..15, places in the codebook."""
    shifted = (sc + 32).view(torch.uint8)
    top = (shifted >> 4).view(-1, 2, 4)
    high = top[:, :, 0] | (top[:, :, 1] << 2) | (top[:, :, 2] << 4) | (top[:, :, 3] << 6)
    return torch.cat((half_bytes(d), high, pack_nibbles(shifted & 15, 1), pack_nibbles(codes, 16)), dim=1)


def unpack_iq4_xs(data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    high = torch.stack([(data[:, 2:4] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=2).view(-1, 8)
    sc = (unpack_nibbles(data[:, 4:8], 1) | (high << 4)).view(torch.int8) - 32
    return half(data[:, :2]), sc, unpack_nibbles(data[:, 8:], 16)


# TQ1_0 keeps five codes 0..2 in a byte: 160 weights in runs of 32, 80 in runs of 16, and the last 16 in runs of 4, four to a byte
_TRITS = ((0, 160, 32), (160, 240, 16), (240, 256, 4))


def pack_tq1_0(d: Tensor, codes: Tensor) -> Tensor:
    """Codes 0..2 [n, 256]."""
    fields = []
    for start, end, run in _TRITS:
        digits = codes[:, start:end].view(len(codes), -1, run).to(torch.int16)
        value = torch.zeros_like(digits[:, 0])
        for digit in range(5):
            value = value * 3 + (digits[:, digit] if digit < digits.shape[1] else 0)
        # as a fraction of 3⁵ in 256ths, rounded up: multiplying by 3 brings one digit after the other above the byte
        fields.append((value.to(torch.int32) * 256 + 242) // 243)
    return torch.cat((*(f.to(torch.uint8) for f in fields), half_bytes(d)), dim=1)


def unpack_tq1_0(data: Tensor) -> tuple[Tensor, Tensor]:
    codes = []
    for bytes_, (start, end, run) in zip((data[:, :32], data[:, 32:48], data[:, 48:52]), _TRITS, strict=True):
        for digit in range((end - start) // run):
            shifted = (bytes_ * 3**digit).to(torch.int16)
            codes.append((shifted * 3 >> 8).to(torch.uint8))
    return half(data[:, 52:]), torch.cat(codes, dim=1)


def pack_tq2_0(d: Tensor, codes: Tensor) -> Tensor:
    """Codes 0..2 [n, 256]."""
    return torch.cat((pack_planes(codes.view(-1, 4, 32), 2).view(len(codes), -1), half_bytes(d)), dim=1)


def unpack_tq2_0(data: Tensor) -> tuple[Tensor, Tensor]:
    return half(data[:, 64:]), unpack_planes(data[:, :64].reshape(-1, 32), 2).view(len(data), -1)
