"""MXFP4 of the OCP Microscaling specification 1.0: 32 weights of four bits (E2M1) under one power of two (E8M0).

ggml takes the exponent from the largest magnitude; best mode also tries its neighbours.
"""

import torch
from torch import Tensor

from .ggml_columns import Blocks
from .ggml_layout import pack_nibbles, unpack_nibbles

# twice the values of E2M1, so that they are whole; the scale that goes with them is half of the stored one
VALUES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
_MIDPOINTS = (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0)


def half_scale(exponent: Tensor) -> Tensor:
    """2^(exponent − 128) for stored exponents 0..254 (ggml_e8m0_to_fp32_half)."""
    e = exponent.to(torch.int32)
    return torch.where(e < 2, (1 << (21 + e.clamp(max=1))), (e - 1) << 23).view(torch.float32)


def nearest_codes(x: Tensor, scale: Tensor) -> Tensor:
    """Codes 0..15 of x [n, 32] under half scales [n, 1]; of two as near the one of smaller magnitude, and never −0."""
    midpoints = torch.tensor(_MIDPOINTS, device=x.device)
    place = torch.bucketize(x.abs() / scale, midpoints)
    return torch.where((x < 0) & (place > 0), place + 8, place).to(torch.uint8)


def decoded(codes: Tensor, scale: Tensor) -> Tensor:
    """float32 of codes 0..15 under half scales."""
    values = torch.tensor((*VALUES, *(-v for v in VALUES)), device=codes.device)
    values[8] = 0.0  # ggml's table is of whole numbers, which have no −0
    return scale * values[codes.long()]


def _fit(x: Tensor, w: Tensor | None, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [n, 32] under the exponents [n, 1], and Σw·error² [n, 1]."""
    scale = half_scale(exponent)
    codes = nearest_codes(x, scale)
    squares = (x - decoded(codes, scale)).square_()
    return codes, (squares if w is None else squares.mul_(w)).sum(1, keepdim=True)


def encode(blocks: Blocks) -> Tensor:
    """The bytes of the blocks, uint8 [n, 17]."""
    x, w = blocks.x, blocks.weights() if blocks.best else None
    peak = x.abs().amax(1, keepdim=True)
    # the logarithm rounded to float32, as log2f's is, which decides just below a power of two
    exponent = (peak.double().log2().float().floor() + 125).clamp(0, 254).to(torch.int32)
    codes, error = _fit(x, w, exponent)
    for step in (1, -1) if blocks.best else ():
        stepped = (exponent + step).clamp_(0, 254)
        other, other_error = _fit(x, w, stepped)
        better = other_error < error
        codes, error = torch.where(better, other, codes), torch.where(better, other_error, error)
        exponent = torch.where(better, stepped, exponent)
    return torch.cat((exponent.to(torch.uint8), pack_nibbles(codes, 16)), dim=1)


def decode(data: Tensor) -> Tensor:
    """float32 [n, 32] of bytes [n, 17]."""
    return decoded(unpack_nibbles(data[:, 1:], 16), half_scale(data[:, :1]))
