"""Σ xᵀx on tensor cores: only tiles on and below the diagonal are computed, and mirrored."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compilation import Compilation


@dataclass(frozen=True)
class Configuration:
    """A square tile of the result per program, `tokens` of them summed at a time."""

    tile: int
    tokens: int
    num_warps: int
    num_stages: int


LARGE = Configuration(tile=128, tokens=32, num_warps=8, num_stages=3)
SMALL = Configuration(tile=64, tokens=32, num_warps=4, num_stages=4)  # with larger tiles a narrow matrix would leave SMs idle
FLOAT32 = Configuration(tile=64, tokens=32, num_warps=4, num_stages=3)
NARROW = 2048
HALVES = (torch.float16, torch.bfloat16)


def accumulate_hessian(hessian: Tensor, x: Tensor) -> None:
    """hessian [in, in] float32, symmetric, += xᵀ x for x [tokens, in] of any float dtype.

    Products of half-precision inputs are exact and summed in float32. Those of float32 are made of three TF32 products
    (within 2⁻²¹ of each; on AMD of one float32 product), for which the tensor cores take eight times as long.
    """
    tokens, n = x.shape
    if not tokens:
        return
    x = (x if x.dtype in HALVES else x.float()).contiguous()
    configuration = FLOAT32 if x.dtype == torch.float32 else SMALL if n < NARROW else LARGE
    tiles = triton.cdiv(n, configuration.tile)
    _accumulate[(tiles * (tiles + 1) // 2,)](
        x,
        hessian,
        tokens,
        n,
        tiles,
        hessian.stride(0),
        TILE=configuration.tile,
        TOKENS=configuration.tokens,
        WIDEN=x.device.type == "cpu",
        PRECISION="ieee" if torch.version.hip else "tf32x3",
        num_warps=configuration.num_warps,
        num_stages=configuration.num_stages,
    )


@triton.jit
def _accumulate(
    x,
    hessian,
    tokens,
    n,
    tiles,
    stride,
    TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """H[i, j] += Σ_t x[t, i] x[t, j] for one tile (i, j), j ≤ i, and H[j, i] likewise. WIDEN: to float32, in the interpreter.

    The triangle of tiles is folded into a rectangle: a long row and a short one have the same length together.
    """
    odd = tiles % 2
    width = tiles + 1 - odd
    fold, at = tl.program_id(0) // width, tl.program_id(0) % width
    short = at >= tiles - fold
    i = tl.where(short, fold - odd, tiles - 1 - fold)
    j = tl.where(short, at - (tiles - fold), at)
    rows, columns = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, tokens, TOKENS):
        t = start + tl.arange(0, TOKENS)
        line = x + t.to(tl.int64)[:, None] * n
        left = tl.load(line + rows[None, :], mask=(t[:, None] < tokens) & (rows[None, :] < n), other=0.0)
        right = tl.load(line + columns[None, :], mask=(t[:, None] < tokens) & (columns[None, :] < n), other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
    inside = (rows[:, None] < n) & (columns[None, :] < n)
    tile = hessian + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    total += tl.load(tile, mask=inside, other=0.0)
    tl.store(tile, total, mask=inside)
    if i != j:
        mirrored = hessian + columns.to(tl.int64)[None, :] * stride + rows[:, None]
        tl.store(mirrored, total, mask=inside)


def _compilation(name: str, dtype: str, configuration: Configuration, precision: str, targets: tuple[str, ...]) -> Compilation:
    return Compilation(
        name=f"accumulate_hessian/{name}",
        kernel=_accumulate,
        signature={"x": f"*{dtype}", "hessian": "*fp32", "tokens": "i32", "n": "i32", "tiles": "i32", "stride": "i32"},
        constants={"TILE": configuration.tile, "TOKENS": configuration.tokens, "WIDEN": False, "PRECISION": precision},
        aligned=("x", "hessian", "n", "stride"),
        num_warps=configuration.num_warps,
        num_stages=configuration.num_stages,
        tensor_cores=True,
        targets=targets,
    )


NVIDIA = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
AMD = ("gfx942",)
COMPILATIONS = (
    _compilation("bf16-large", "bf16", LARGE, "tf32x3", NVIDIA),
    _compilation("fp16-large", "fp16", LARGE, "tf32x3", NVIDIA),
    _compilation("bf16-small", "bf16", SMALL, "tf32x3", NVIDIA),
    _compilation("fp32", "fp32", FLOAT32, "tf32x3", NVIDIA),
    _compilation("bf16-large-amd", "bf16", LARGE, "ieee", AMD),
    _compilation("bf16-small-amd", "bf16", SMALL, "ieee", AMD),
    _compilation("fp32-amd", "fp32", FLOAT32, "ieee", AMD),
)
