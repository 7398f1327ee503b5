"""AWQ's losses: the rounding error of a scale, then its quadratic form in the Hessian, of which only one triangle is multiplied."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import target
from .compilation import TARGETS, Compilation
from .grid import span, to_codes

ELEMENTS = 2048  # of a matrix, per program that rounds
NUM_WARPS, NUM_STAGES = 4, 2


@dataclass(frozen=True)
class Tiles:
    """A square tile of Δ H per program, `depth` products of it summed at a time."""

    tile: int
    depth: int
    num_warps: int
    num_stages: int


# by target ("": any other, where the larger tile would not fit into registers)
TILES = {"": Tiles(64, 32, NUM_WARPS, NUM_STAGES), "sm_90": Tiles(128, 32, 8, 3)}


def awq_losses(weight: Tensor, hessian: Tensor, scales: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """tr(ΔHΔᵀ) for each of scales [n, in]: [n] float32."""
    return torch.stack([quadratic_form(rounding_error(weight, s, bits, group_size, symmetric), hessian) for s in scales])


def rounding_error(weight: Tensor, s: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """Δ [out, in] = Q(W·s)/s − W, to the bit as the definition's."""
    weight = weight.contiguous()
    out, n = weight.shape
    delta = torch.empty_like(weight)
    width = triton.next_power_of_2(group_size)
    rows = max(1, ELEMENTS // width)
    _error[(triton.cdiv(out, rows), n // group_size)](
        weight,
        s.contiguous(),
        delta,
        out,
        n,
        group_size,
        ROWS=rows,
        WIDTH=width,
        MAX_CODE=2**bits - 1,
        SYMMETRIC=symmetric,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        enable_fp_fusion=False,
    )
    return delta


def quadratic_form(delta: Tensor, hessian: Tensor) -> Tensor:
    """tr(ΔHΔᵀ) []. Products of float32 are made of three TF32 products (on AMD of one of float32): one alone is off by 7e-4."""
    delta, hessian, (out, n) = delta.contiguous(), hessian.contiguous(), delta.shape
    tiles = TILES.get("" if delta.device.type == "cpu" else target(delta.device.index), TILES[""])
    grid = (triton.cdiv(out, tiles.tile), triton.cdiv(n, tiles.tile))
    parts = delta.new_empty(grid)
    _quadratic[grid](
        delta,
        hessian,
        parts,
        out,
        n,
        TILE=tiles.tile,
        DEPTH=tiles.depth,
        PRECISION="ieee" if torch.version.hip else "tf32x3",
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return parts.sum()


@triton.jit
def _error(
    weight,
    scales,
    delta,
    out,
    n,
    group_size,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    MAX_CODE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """One group of ROWS rows: (code(w·s) − zero) · scale / s − w."""
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    channels = tl.program_id(1) * group_size + columns
    inside = (rows[:, None] < out) & (columns[None, :] < group_size)
    at = rows.to(tl.int64)[:, None] * n + channels[None, :]
    w = tl.load(weight + at, mask=inside, other=0.0)
    s = tl.broadcast_to(tl.load(scales + channels, mask=columns < group_size, other=1.0)[None, :], w.shape)
    scale, zero = span(w * s, 1.0, MAX_CODE, SYMMETRIC)
    step, origin = tl.broadcast_to(scale[:, None], w.shape), tl.broadcast_to(zero[:, None], w.shape)
    points = (to_codes(tl.div_rn(w * s, step), origin, MAX_CODE) - origin) * step
    tl.store(delta + at, tl.div_rn(points, s) - w, mask=inside)


@triton.jit
def _quadratic(delta, hessian, parts, out, n, TILE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    """Σ over TILE rows and TILE columns j of Δ_j (2 Σ_k Δ_k H_kj over the columns k before the tile, + Σ over those in it)."""
    rows, first = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1) * TILE
    columns = first + tl.arange(0, TILE)
    lines = delta + rows.to(tl.int64)[:, None] * n
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, tl.minimum(first + TILE, n), DEPTH):
        k = start + tl.arange(0, DEPTH)
        left = tl.load(lines + k[None, :], mask=(rows[:, None] < out) & (k[None, :] < n), other=0.0)
        # H is symmetric: by rows of its columns, as wgmma wants factors of 32 bits
        square = hessian + columns.to(tl.int64)[:, None] * n + k[None, :]
        right = tl.load(square, mask=(columns[:, None] < n) & (k[None, :] < n), other=0.0)
        left = tl.where(start < first, 2.0, 1.0) * left
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
    own = tl.load(lines + columns[None, :], mask=(rows[:, None] < out) & (columns[None, :] < n), other=0.0)
    tl.store(parts + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.sum(total * own, 1), 0))


def _quadratic_form(name: str, precision: str, tiles: Tiles, targets: tuple[str, ...]) -> Compilation:
    return Compilation(
        name=name,
        kernel=_quadratic,
        signature={"delta": "*fp32", "hessian": "*fp32", "parts": "*fp32", "out": "i32", "n": "i32"},
        constants={"TILE": tiles.tile, "DEPTH": tiles.depth, "PRECISION": precision},
        aligned=("delta", "hessian", "n"),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        tensor_cores=True,
        targets=targets,
    )


COMPILATIONS = (
    Compilation(
        name="awq_losses/error-g128",
        kernel=_error,
        signature={"weight": "*fp32", "scales": "*fp32", "delta": "*fp32", "out": "i32", "n": "i32", "group_size": "i32"},
        constants={"ROWS": ELEMENTS // 128, "WIDTH": 128, "MAX_CODE": 15, "SYMMETRIC": False},
        aligned=("weight", "scales", "delta", "out", "n", "group_size"),
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        fp_fusion=False,
        weights=ELEMENTS,
        bytes_read=8.0 * ELEMENTS,
    ),
    _quadratic_form("quadratic_form", "tf32x3", TILES[""], tuple(t for t in TARGETS[:-1] if t != "sm_90")),
    _quadratic_form("quadratic_form/sm_90", "tf32x3", TILES["sm_90"], ("sm_90",)),
    _quadratic_form("quadratic_form/amd", "ieee", TILES[""], TARGETS[-1:]),
)
