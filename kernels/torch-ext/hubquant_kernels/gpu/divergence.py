"""Cross-entropy, KL divergence and top-1 agreement in one pass over the vocabulary, by an online softmax of both models.

With p the base, q the other, m the largest logit and S = Σ e^(l − m):  KL = Σ e^(p − m_p) (p − q) / S_p − (m_p − m_q)
− (log S_p − log S_q). Only differences of logits enter it, so their common size costs no precision.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compilation import TARGETS, Compilation


@dataclass(frozen=True)
class Heads:
    """Positions and tokens of a tile of logits, and how many entries of their width are multiplied at a time."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


NVIDIA = Heads(rows=64, columns=128, depth=32, num_warps=8, num_stages=3)
AMD = Heads(rows=64, columns=64, depth=32, num_warps=4, num_stages=2)
BLOCK, BLOCK_WARPS, BLOCK_STAGES = 2048, 8, 2
PROGRAMS = 512  # the vocabulary is split until there are so many, for positions are few
PARTS = 8  # m_p, S_p, m_q, S_q, Σ e^(p − m_p) (p − q), the target's q, and both most likely tokens


def divergence(base: Tensor, other: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """base, other [n, vocabulary] logits; targets [n]."""
    n, vocabulary = base.shape
    parts = base.new_empty((PARTS, 1, n), dtype=torch.float32)
    if n:
        _of_logits[(n,)](
            base.contiguous(),
            other.contiguous(),
            targets,
            parts,
            n,
            vocabulary,
            BLOCK=BLOCK,
            num_warps=BLOCK_WARPS,
            num_stages=BLOCK_STAGES,
        )
    return _finish(parts)


def divergence_of_heads(
    hidden_base: Tensor, head_base: Tensor, hidden_other: Tensor, head_other: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [n, width], head [vocabulary, width], all float16 or all bfloat16; the two widths may differ."""
    n, vocabulary = hidden_base.shape[0], head_base.shape[0]
    shape = AMD if torch.version.hip else NVIDIA
    tiles, blocks = triton.cdiv(n, shape.rows), triton.cdiv(vocabulary, shape.columns)
    splits = min(blocks, max(1, PROGRAMS // max(tiles, 1)))
    each = triton.cdiv(blocks, splits)
    splits = triton.cdiv(blocks, each)
    parts = hidden_base.new_empty((PARTS, splits, n), dtype=torch.float32)
    if n:
        _of_heads[(tiles, splits)](
            hidden_base.contiguous(),
            head_base.contiguous(),
            hidden_other.contiguous(),
            head_other.contiguous(),
            targets,
            parts,
            n,
            vocabulary,
            hidden_base.shape[1],
            hidden_other.shape[1],
            each,
            ROWS=shape.rows,
            COLUMNS=shape.columns,
            DEPTH=shape.depth,
            WIDEN=hidden_base.device.type == "cpu",
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
        )
    return _finish(parts)


def _finish(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the parts [8, splits, n] of every stretch of the vocabulary to the three results [n]."""
    m_p, s_p, m_q, s_q, cross, target, first_p, first_q = parts
    top_p, at_p = m_p.max(dim=0)
    top_q, at_q = m_q.max(dim=0)
    weight_p, weight_q = (m_p - top_p).exp(), (m_q - top_q).exp()
    total_p, total_q = (s_p * weight_p).sum(0), (s_q * weight_q).sum(0)
    crossed = torch.where(weight_p > 0, cross * weight_p, 0).sum(0)
    kl = crossed / total_p - (top_p - top_q) - (total_p.log() - total_q.log())
    nll = (top_q - target.amax(0)) + total_q.log()
    return nll, kl.clamp_min(0), first_p.gather(0, at_p[None])[0] == first_q.gather(0, at_q[None])[0]


@triton.jit
def _advance(p, q, columns, targets, m_p, s_p, m_q, s_q, cross, target, first_p, first_q):
    """Add logits p, q [rows, columns] to the sums of every row."""
    top_p, its_p = tl.max(p, 1, return_indices=True)
    top_q, its_q = tl.max(q, 1, return_indices=True)
    start = tl.min(columns, 0)
    first_p = tl.where(top_p > m_p, (start + its_p).to(tl.float32), first_p)
    first_q = tl.where(top_q > m_q, (start + its_q).to(tl.float32), first_q)
    new_p, new_q = tl.maximum(m_p, top_p), tl.maximum(m_q, top_q)
    at_p, at_q = tl.where(new_p == -float("inf"), 0.0, new_p), tl.where(new_q == -float("inf"), 0.0, new_q)
    weight = tl.exp(p - at_p[:, None])
    fade_p = tl.exp(m_p - at_p)
    s_p = s_p * fade_p + tl.sum(weight, 1)
    s_q = s_q * tl.exp(m_q - at_q) + tl.sum(tl.exp(q - at_q[:, None]), 1)
    cross = tl.where(fade_p > 0, cross * fade_p, 0.0) + tl.sum(tl.where(weight > 0, weight * (p - q), 0.0), 1)
    hit = columns[None, :] == targets[:, None]
    target = tl.maximum(target, tl.max(tl.where(hit, q, -float("inf")), 1))
    return new_p, s_p, new_q, s_q, cross, target, first_p, first_q


@triton.jit
def _nothing(ROWS: tl.constexpr):
    """The parts before any logit."""
    low, none = tl.full((ROWS,), -float("inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    return low, none, low, none, none, low, none, none


@triton.jit
def _write(parts, at, stride, mask, m_p, s_p, m_q, s_q, cross, target, first_p, first_q):
    tl.store(parts + at, m_p, mask=mask)
    tl.store(parts + stride + at, s_p, mask=mask)
    tl.store(parts + 2 * stride + at, m_q, mask=mask)
    tl.store(parts + 3 * stride + at, s_q, mask=mask)
    tl.store(parts + 4 * stride + at, cross, mask=mask)
    tl.store(parts + 5 * stride + at, target, mask=mask)
    tl.store(parts + 6 * stride + at, first_p, mask=mask)
    tl.store(parts + 7 * stride + at, first_q, mask=mask)


@triton.jit
def _of_logits(base, other, targets, parts, n, vocabulary, BLOCK: tl.constexpr):
    """One position per program."""
    row = tl.program_id(0) + tl.arange(0, 1)
    wanted = tl.load(targets + row)
    m_p, s_p, m_q, s_q, cross, target, first_p, first_q = _nothing(1)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        at = row.to(tl.int64)[:, None] * vocabulary + columns[None, :]
        p = tl.load(base + at, mask=columns[None, :] < vocabulary, other=-float("inf")).to(tl.float32)
        q = tl.load(other + at, mask=columns[None, :] < vocabulary, other=-float("inf")).to(tl.float32)
        m_p, s_p, m_q, s_q, cross, target, first_p, first_q = _advance(
            p, q, columns, wanted, m_p, s_p, m_q, s_q, cross, target, first_p, first_q
        )
    _write(parts, row, n, row < n, m_p, s_p, m_q, s_q, cross, target, first_p, first_q)


@triton.jit
def _logits(hidden, head, rows, columns, n, vocabulary, width, ROWS, COLUMNS, DEPTH: tl.constexpr, WIDEN: tl.constexpr):
    """Σ_k hidden[row, k] head[column, k] in float32; −inf beyond the vocabulary. WIDEN: to float32, in the interpreter."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, width, DEPTH):
        k = start + tl.arange(0, DEPTH)
        left = tl.load(
            hidden + rows.to(tl.int64)[:, None] * width + k[None, :], mask=(rows[:, None] < n) & (k[None, :] < width), other=0.0
        )
        right = tl.load(
            head + columns.to(tl.int64)[:, None] * width + k[None, :],
            mask=(columns[:, None] < vocabulary) & (k[None, :] < width),
            other=0.0,
        )
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, tl.trans(right), total)
    return tl.where(columns[None, :] < vocabulary, total, -float("inf"))


@triton.jit
def _of_heads(
    hidden_base,
    head_base,
    hidden_other,
    head_other,
    targets,
    parts,
    n,
    vocabulary,
    width_base,
    width_other,
    each,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """ROWS positions and `each` blocks of the vocabulary per program: the logits of a block live in registers only."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wanted = tl.load(targets + rows, mask=rows < n, other=0)
    m_p, s_p, m_q, s_q, cross, target, first_p, first_q = _nothing(ROWS)
    first = tl.program_id(1) * each * COLUMNS
    for start in range(first, tl.minimum(first + each * COLUMNS, vocabulary), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        p = _logits(hidden_base, head_base, rows, columns, n, vocabulary, width_base, ROWS, COLUMNS, DEPTH, WIDEN)
        q = _logits(hidden_other, head_other, rows, columns, n, vocabulary, width_other, ROWS, COLUMNS, DEPTH, WIDEN)
        m_p, s_p, m_q, s_q, cross, target, first_p, first_q = _advance(
            p, q, columns, wanted, m_p, s_p, m_q, s_q, cross, target, first_p, first_q
        )
    at = tl.program_id(1) * n + rows
    _write(parts, at, tl.num_programs(1) * n, rows < n, m_p, s_p, m_q, s_q, cross, target, first_p, first_q)


def _compilation(name: str, shape: Heads, targets: tuple[str, ...]) -> Compilation:
    pointers = dict.fromkeys(("hidden_base", "head_base", "hidden_other", "head_other"), "*bf16")
    numbers = dict.fromkeys(("n", "vocabulary", "width_base", "width_other", "each"), "i32")
    return Compilation(
        name=f"divergence_of_heads/{name}",
        kernel=_of_heads,
        signature={**pointers, "targets": "*i64", "parts": "*fp32", **numbers},
        constants={"ROWS": shape.rows, "COLUMNS": shape.columns, "DEPTH": shape.depth, "WIDEN": False},
        aligned=(*pointers, "parts", "width_base", "width_other"),
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
        tensor_cores=True,
        targets=targets,
    )


COMPILATIONS = (
    Compilation(
        name="divergence/fp32",
        kernel=_of_logits,
        signature={"base": "*fp32", "other": "*fp32", "targets": "*i64", "parts": "*fp32", "n": "i32", "vocabulary": "i32"},
        constants={"BLOCK": BLOCK},
        aligned=("base", "other", "targets", "parts", "vocabulary"),
        num_warps=BLOCK_WARPS,
        num_stages=BLOCK_STAGES,
        bytes_read=8.0 * BLOCK,
    ),
    _compilation("bf16", NVIDIA, TARGETS[:-1]),
    _compilation("bf16-amd", AMD, TARGETS[-1:]),
)
