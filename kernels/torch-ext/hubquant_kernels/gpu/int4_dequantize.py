"""Dense weights from GPTQ's and AWQ's words, for products of many rows. Bit for bit the definitions' values in float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compilation import Compilation

OUTPUTS, CHANNELS = 64, 64
WARPS, STAGES = 4, 2


def dequantize_gptq(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, bits: int, zero_offset: int) -> Tensor:
    """[out, in] float32; the operator of that name."""
    return decode_gptq(qweight, qzeros, scales, g_idx, bits, zero_offset, torch.float32)


def dequantize_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """[out, in] float32; the operator of that name."""
    return decode_awq(qweight, qzeros, scales, torch.float32)


def decode_gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, bits: int, zero_offset: int, dtype: torch.dtype
) -> Tensor:
    """[out, in] in `dtype`; the other arguments are those of `dequantize_gptq`."""
    n_in = qweight.shape[0] * 32 // bits
    return _decode(qweight, qzeros, scales, g_idx, n_in, bits, zero_offset, False, dtype)


def decode_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[out, in] in `dtype`; the other arguments are those of `dequantize_awq`."""
    return _decode(qweight, qzeros, scales, None, qweight.shape[0], 4, 0, True, dtype)


def _decode(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None,
    n_in: int,
    bits: int,
    zero_offset: int,
    awq: bool,
    dtype: torch.dtype,
) -> Tensor:
    n_out = scales.shape[1]
    dense = torch.empty(n_out, n_in, dtype=dtype, device=qweight.device)
    _dense[(triton.cdiv(n_out, OUTPUTS), triton.cdiv(n_in, CHANNELS))](
        qweight.contiguous(),
        qzeros.contiguous(),
        scales.contiguous(),
        qweight if g_idx is None else g_idx,
        dense,
        n_out,
        n_in,
        n_in // scales.shape[0],
        BITS=bits,
        ZERO_OFFSET=zero_offset,
        AWQ=awq,
        IN_ORDER=g_idx is None,
        OUTPUTS=OUTPUTS,
        CHANNELS=CHANNELS,
        num_warps=WARPS,
        num_stages=STAGES,
        enable_fp_fusion=False,
    )
    return dense


@triton.jit
def _field(words, at, stride, inside, BITS: tl.constexpr):
    """Code `at` of a stream of words that lie `stride` apart. Codes of 3 bits may lie across two words."""
    first = at * BITS // 32
    start = at * BITS % 32
    low = tl.load(words + first * stride, mask=inside, other=0)
    code = low >> start
    if BITS == 3:
        across = inside & (start > 29)
        high = tl.load(words + (first + 1) * stride, mask=across, other=0)
        kept = tl.where(start > 29, 32 - start, 3)
        code = (code & ((1 << kept) - 1)) | tl.where(start > 29, high << kept, 0)
    return code & ((1 << BITS) - 1)


@triton.jit
def _dense(
    qweight,
    qzeros,
    scales,
    g_idx,
    dense,
    n_out,
    n_in,
    group_size,
    BITS: tl.constexpr,
    ZERO_OFFSET: tl.constexpr,
    AWQ: tl.constexpr,
    IN_ORDER: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dense[n, k] = (code[k, n] − zero[g, n]) · scale[g, n] with g the group of channel k."""
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (k[:, None] < n_in) & (n[None, :] < n_out)
    group = k // group_size if IN_ORDER else tl.load(g_idx + k, mask=k < n_in, other=0)
    zero_words = qzeros + group[:, None] * (n_out * BITS // 32)
    if AWQ:
        place = n // 8 * 8 + n % 8 // 2 + n % 2 * 4  # columns 0 2 4 6 1 3 5 7 stand in one word
        code = _field(qweight + k[:, None] * (n_out // 8), place[None, :], 1, inside, BITS)
        zero = _field(zero_words, place[None, :], 1, inside, BITS)
    else:
        code = _field(qweight + n[None, :], k[:, None], n_out, inside, BITS)
        zero = (_field(zero_words, n[None, :], 1, inside, BITS) + ZERO_OFFSET) & ((1 << BITS) - 1)
    scale = tl.load(scales + group[:, None] * n_out + n[None, :], mask=inside, other=0.0)
    weight = (code - zero).to(tl.float32) * scale.to(tl.float32)
    at = dense + n.to(tl.int64)[:, None] * n_in + k[None, :]
    tl.store(at, tl.trans(weight).to(dense.dtype.element_ty), mask=(n[:, None] < n_out) & (k[None, :] < n_in))


def _compilation(name: str, bits: int, awq: bool, in_order: bool) -> Compilation:
    return Compilation(
        name=f"dequantize_{name}",
        kernel=_dense,
        signature={
            **dict.fromkeys(("qweight", "qzeros", "g_idx"), "*i32"),
            **{"scales": "*fp16", "dense": "*fp16", "n_out": "i32", "n_in": "i32", "group_size": "i32"},
        },
        constants={
            "BITS": bits,
            "ZERO_OFFSET": 0 if awq else 1,
            "AWQ": awq,
            "IN_ORDER": in_order,
            "OUTPUTS": OUTPUTS,
            "CHANNELS": CHANNELS,
        },
        aligned=("qweight", "qzeros", "scales", "g_idx", "dense", "n_out", "n_in", "group_size"),
        num_warps=WARPS,
        num_stages=STAGES,
        fp_fusion=False,
    )


COMPILATIONS = (
    _compilation("gptq/4", 4, awq=False, in_order=True),
    _compilation("gptq/3-act-order", 3, awq=False, in_order=False),
    _compilation("awq", 4, awq=True, in_order=True),
)
