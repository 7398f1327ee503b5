"""4-bit weights in the order that torch's int4 product on CPUs reads, and that product.

The order is torch's own and differs between instruction sets, so it is found by packing codes that name their places.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix

BLOCK_ROWS = (64, 32, 16)  # how many outputs torch packs together, by the width of the vector registers
GROUP_SIZES = (256, 128, 64, 32)  # those that torch's product knows
FEW = 256  # rows up to which it takes less time than decoding the weight and a dense product
MIDDLE = 8  # the code that torch takes for zero


def fits(n_out: int, n_in: int, group_size: int) -> bool:
    """Whether torch has the product for these sizes on this machine, in an order that is understood here."""
    rows = _rows()
    if rows is None or n_out % 16 or n_in % group_size or _block(group_size) is None:
        return False
    return n_out % rows == 0 or _order(n_out % rows) is not None


def repack(codes: Tensor) -> Tensor:
    """codes [out, in] uint8 of 4 bits, of sizes that fit → [out, in/2] uint8 in torch's order."""
    parts = codes.split(16 * BLOCK_ROWS[0])  # torch wants an int32 for every code: not for all of them at once
    return torch.cat([torch.ops.aten._convert_weight_to_int4pack_for_cpu(part.int(), 1) for part in parts])


def codes_of(packed: Tensor) -> Tensor:
    """The inverse of `repack`: [out, in/2] → [out, in] uint8."""
    n_out, width = packed.shape
    rows = _rows() or n_out
    whole = n_out // rows * rows
    codes = torch.empty(n_out, 2 * width, dtype=torch.uint8)
    for start, stop, block in ((0, whole, rows), (whole, n_out, n_out - whole)):
        order = _order(block) if stop > start else None
        if order is not None:
            pairs = packed[start:stop].reshape(-1, 2 * width, block // 2)
            lanes = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)  # [blocks, in, block]
            codes[start:stop] = lanes[..., order.argsort()].transpose(1, 2).reshape(stop - start, -1)
    return codes


def grid(scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    """[in/g, out, 2] bfloat16, scale and (8 − zero) · scale, from scales and zeros [n_groups, out]; g: a size that torch knows."""
    block = _block(group_size)
    if block is None:
        raise ValueError(f"torch's int4 product has no groups of {group_size}; known: multiples of {GROUP_SIZES[-1]}")
    scale = scales.float()
    pairs = torch.stack((scale, (MIDDLE - zeros.float()) * scale), dim=-1).bfloat16()
    return pairs.repeat_interleave(group_size // block, dim=0).contiguous()


@torch.library.custom_op(add_op_namespace_prefix("dequantize_repacked"), mutates_args=())
def dequantize_repacked(packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """[out, in] float32, (code − zero) · scale, from `repack`'s codes and scales and zeros [n_groups, out]."""
    codes = codes_of(packed).unflatten(-1, (scales.shape[0], -1))
    return ((codes.float() - zeros.T.float()[..., None]) * scales.T.float()[..., None]).flatten(-2)


@dequantize_repacked.register_fake
def _(packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return packed.new_empty((packed.shape[0], 2 * packed.shape[1]), dtype=torch.float32)


@torch.library.custom_op(add_op_namespace_prefix("matmul_repacked"), mutates_args=())
def matmul_repacked(x: Tensor, packed: Tensor, pairs: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """x [..., in] @ Wᵀ → [..., out] in x's dtype, W = (code − zero) · scale.

    packed [out, in/2] uint8 (`repack`), pairs (`grid`), scales [n_groups, out], zeros [n_groups, out] uint8. Few rows of
    a half-precision type are multiplied in bfloat16, scales too: within about 2⁻⁸ of Σ|x||w|. float32 stays float32.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > FEW or x.dtype not in (torch.bfloat16, torch.float16):
        return _dense_product(x, dequantize_repacked(packed, scales, zeros))
    group_size = x.shape[-1] // pairs.shape[0]
    out = torch.ops.aten._weight_int4pack_mm_for_cpu(rows.bfloat16().contiguous(), packed, group_size, pairs)
    return out.to(x.dtype).reshape(*x.shape[:-1], packed.shape[0])


@matmul_repacked.register_fake
def _(x: Tensor, packed: Tensor, pairs: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], *inputs[3:])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _dense_product(gradient, dequantize_repacked(*ctx.saved_tensors).T), None, None, None, None


matmul_repacked.register_autograd(_backward, setup_context=_keep)


def _dense_product(x: Tensor, weight: Tensor) -> Tensor:
    """In float32, but bfloat16 as it is where the processor multiplies tiles of it: elsewhere that is many times slower."""
    dtype = x.dtype if x.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() else torch.float32
    return (x.to(dtype) @ weight.to(dtype).T).to(x.dtype)


def _block(group_size: int) -> int | None:
    """The largest of torch's group sizes that divides `group_size`."""
    return next((size for size in GROUP_SIZES if group_size % size == 0), None)


def _rows() -> int | None:
    """How many outputs torch packs together; what is left of them at the end is a smaller block."""
    return next((rows for rows in BLOCK_ROWS if _order(rows) is not None), None)


@functools.cache
def _order(rows: int) -> Tensor | None:
    """Which of a block's outputs stand in the nibbles of a channel: [rows], low nibble first. None if it is no such block."""
    place = torch.arange(rows)
    named = torch.stack((place & 15, place >> 4), dim=1)  # two channels, whose codes together are the number of the output
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(named.int(), 1).view(2, rows // 2)
    except (AttributeError, RuntimeError):  # another torch, or another processor
        return None
    lanes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1).long()
    order = lanes[0] + 16 * lanes[1]
    return order if torch.equal(order.sort().values, place) else None
