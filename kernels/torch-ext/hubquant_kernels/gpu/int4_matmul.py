"""W4A16 products on tensor cores straight from GPTQ's and AWQ's words.

By static bounds the number of instructions per weight limits them, not memory (on an H100 they take three times as long). So two
codes at a time become two half-precision numbers by one AND and one OR: a code is put into the mantissa of 1024 (float16) or 128
(bfloat16), and 1024 + zero is subtracted, which is exact. A group's scale multiplies its sum, in float32. And the channels
(GPTQ) or columns (AWQ) of a tile are ordered so that a word's eight codes stay in the thread that loaded it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import target
from .compilation import TARGETS, Compilation
from .int4_dequantize import decode_awq, decode_gptq


@dataclass(frozen=True)
class Configuration:
    """A tile of `rows` of x by `columns` of the result per program, at most `channels` at a time.

    `swapped`: the weights are the left factor, as wgmma wants them to come from registers. `pairs`: how many neighbouring
    channels a thread holds in the tensor cores' layout, which follows from the instruction that Triton picks.
    """

    rows: int
    columns: int
    channels: int = 128
    num_warps: int = 4
    num_stages: int = 3
    swapped: bool = False
    pairs: int = 4


SUM, SUM_WARPS, SUM_STAGES = 1024, 4, 2
MANY = 128  # rows from which decoding the weight once and a dense product move less
SPLITS_PER_PROCESSOR = 2
# by layout and target ("": any other), the fewest rows first; AWQ's order of columns is made for 256 of them and four warps
CONFIGURATIONS = {
    ("gptq", ""): (Configuration(16, 256), Configuration(32, 128)),
    ("awq", ""): (Configuration(16, 256), Configuration(32, 256, channels=64)),
    ("gptq", "sm_90"): (Configuration(16, 128, swapped=True, pairs=2), Configuration(32, 128, swapped=True, pairs=2)),
    ("awq", "sm_90"): (Configuration(16, 256, swapped=True), Configuration(32, 256, channels=64, swapped=True)),
    ("gptq", "gfx942"): (Configuration(16, 128, num_stages=2), Configuration(32, 128, num_stages=2)),
    ("awq", "gfx942"): (Configuration(16, 256, channels=64, num_stages=2), Configuration(32, 256, channels=64, num_stages=2)),
}


def matmul_gptq(
    x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, bits: int, zero_offset: int
) -> Tensor:
    """x [..., in] @ Wᵀ → [..., out]; the operator of that name. Groups in order (no g_idx) and 4 bits are what is fast."""
    if bits == 4 and g_idx is None and _packed(x, scales):
        return _product("gptq", x, qweight, qzeros, scales, zero_offset)
    return x @ decode_gptq(qweight, qzeros, scales, g_idx, bits, zero_offset, x.dtype).T


def matmul_awq(x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """x [..., in] @ Wᵀ → [..., out]; the operator of that name."""
    if _packed(x, scales):
        return _product("awq", x, qweight, qzeros, scales, 0)
    return x @ decode_awq(qweight, qzeros, scales, x.dtype).T


def _packed(x: Tensor, scales: Tensor) -> bool:
    """Whether the product is made from the words themselves: few rows of a half-precision type, groups of whole blocks."""
    group_size, rest = divmod(x.shape[-1], scales.shape[0])
    few = 0 < x.numel() // x.shape[-1] <= MANY
    return few and x.dtype in (torch.float16, torch.bfloat16) and not rest and group_size % 32 == 0


def _product(layout: str, x: Tensor, qweight: Tensor, qzeros: Tensor, scales: Tensor, zero_offset: int) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    (n_rows, n_in), n_out = rows.shape, scales.shape[1]
    group_size = n_in // scales.shape[0]
    on_cpu = x.device.type == "cpu"
    few, more = CONFIGURATIONS.get((layout, "" if on_cpu else target(x.device.index)), CONFIGURATIONS[layout, ""])
    c = few if n_rows <= few.rows else more
    block = max(size for size in (32, 64, 128) if size <= c.channels and group_size % size == 0)
    tiles = triton.cdiv(n_out, c.columns) * triton.cdiv(n_rows, c.rows)
    processors = 4 if on_cpu else torch.cuda.get_device_properties(x.device).multi_processor_count
    blocks = triton.cdiv(n_in // block, max(1, SPLITS_PER_PROCESSOR * processors // tiles))
    splits = triton.cdiv(n_in // block, blocks)
    partial = torch.empty(splits, n_rows, n_out, dtype=torch.float32, device=x.device)
    _partial_products[(triton.cdiv(n_out, c.columns), triton.cdiv(n_rows, c.rows), splits)](
        rows,
        qweight.contiguous(),
        qzeros.contiguous(),
        scales.contiguous(),
        partial,
        n_rows,
        n_out,
        n_in,
        group_size,
        blocks,
        **_constants(layout, c, block, zero_offset, one_block=block == group_size, masked=n_out % c.columns != 0, widen=on_cpu),
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    out = torch.empty(n_rows, n_out, dtype=x.dtype, device=x.device)
    _sum[(triton.cdiv(out.numel(), SUM),)](partial, out, out.numel(), splits, SIZE=SUM, num_warps=SUM_WARPS, num_stages=SUM_STAGES)
    return out.reshape(*x.shape[:-1], n_out)


def _constants(
    layout: str, c: Configuration, block: int, zero_offset: int, one_block: bool, masked: bool, widen: bool
) -> dict[str, Any]:
    return {
        "ROWS": c.rows,
        "COLUMNS": c.columns,
        "BLOCK": block,
        "ZERO_OFFSET": zero_offset,
        "AWQ": layout == "awq",
        "PAIRS": c.pairs,
        "SWAPPED": c.swapped,
        "ONE_BLOCK": one_block,
        "MASKED": masked,
        "WIDEN": widen,
    }


@triton.jit
def _floats(words, FLOAT: tl.constexpr):
    """words [a, b, c] → [a, b, c, 2, 2, 2]: m + code 2y + x of the upper half of a word, then of the lower, at [..., x, y, half].

    m is 1024 for float16 and 128 for bfloat16, whose last bit is worth 1 there.
    """
    mantissa: tl.constexpr = 0x64006400 if tl.float16 == FLOAT else 0x43004300
    p0 = (words & 0x000F000F) | mantissa
    p1 = ((words >> 4) & 0x000F000F) | mantissa
    p2 = ((words >> 8) & 0x000F000F) | mantissa
    p3 = ((words >> 12) & 0x000F000F) | mantissa
    p = tl.join(tl.join(p0, p1), tl.join(p2, p3))
    lower = (p & 0xFFFF).to(tl.int16).to(FLOAT, bitcast=True)
    upper = ((p >> 16) & 0xFFFF).to(tl.int16).to(FLOAT, bitcast=True)
    return tl.join(upper, lower)


@triton.jit
def _gptq_tile(words, FLOAT: tl.constexpr, PAIRS: tl.constexpr):
    """words [K/8, N] → [K, N] m + code, the channels in the order of `_channels`."""
    words = words.reshape(words.shape[0] // 4, 4, words.shape[1])
    f = _floats(words, FLOAT)
    f = f.permute(0, 3, 1, 4, 5, 2) if PAIRS == 4 else f.permute(0, 4, 3, 1, 5, 2)
    return f.reshape(32 * words.shape[0], words.shape[2])


@triton.jit
def _channels(k, PAIRS: tl.constexpr):
    """Which channel of a GPTQ tile stands at place k: of each 32, the eight of a word lie where one thread's operands are."""
    if PAIRS == 4:
        return k // 32 * 32 + k // 4 % 4 * 8 + k // 16 % 2 + k // 2 % 2 * 2 + (1 - k % 2) * 4
    return k // 32 * 32 + k // 2 % 4 * 8 + k // 8 % 2 + k // 16 % 2 * 2 + (1 - k % 2) * 4


@triton.jit
def _awq_tile(even, odd, FLOAT: tl.constexpr, SWAPPED: tl.constexpr):
    """Words of the even and of the odd channels [K/2, 32] → [K, 256] m + code, the columns in the order of `_columns`."""
    half: tl.constexpr = even.shape[0]
    first = (odd & 0xFFFF) | (even << 16)  # columns 0, 2, 4, 6 of two channels
    second = ((odd >> 16) & 0xFFFF) | (even & -65536)  # columns 1, 3, 5, 7
    f = _floats(tl.join(first, second), FLOAT).reshape(half, 4, 8, 2, 2, 2, 2)
    f = f.permute(0, 6, 5, 4, 1, 3, 2) if SWAPPED else f.permute(0, 6, 5, 4, 3, 1, 2)
    return f.reshape(2 * half, 256)


@triton.jit
def _columns(n, SWAPPED: tl.constexpr):
    """Which of an AWQ tile's 256 columns stands at place n: each of four warps has 64 of them, each thread whole words."""
    if SWAPPED:
        return n // 16 % 4 * 64 + n % 8 * 8 + n // 8 % 2 + n // 64 * 2
    return n // 8 % 4 * 64 + n % 8 * 8 + n // 32


@triton.jit
def _partial_products(
    x,
    qweight,
    qzeros,
    scales,
    partial,
    n_rows,
    n_out,
    n_in,
    group_size,
    blocks,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ZERO_OFFSET: tl.constexpr,
    AWQ: tl.constexpr,
    PAIRS: tl.constexpr,
    SWAPPED: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """partial[split, row, column] = Σ_g s_g Σ_k (code_k − zero_g) x_k over the split's `blocks` blocks of BLOCK channels.

    MASKED: n_out is no multiple of COLUMNS. WIDEN: compute in float32, in the interpreter.
    """
    FLOAT: tl.constexpr = x.dtype.element_ty
    place = tl.arange(0, COLUMNS)
    n = tl.program_id(0) * COLUMNS + (_columns(place, SWAPPED) if AWQ else place)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    channel = at if AWQ else _channels(at, PAIRS)
    if AWQ:
        word_row, word_column = 2 * tl.arange(0, BLOCK // 2), tl.program_id(0) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)
        step, across, nibble = BLOCK, n_out // 8, n % 8 // 2 + n % 2 * 4
    else:
        word_row, word_column = tl.arange(0, BLOCK // 8), n
        step, across, nibble = BLOCK // 8, n_out, n % 8
    total = tl.zeros((COLUMNS, ROWS) if SWAPPED else (ROWS, COLUMNS), tl.float32)
    first = tl.program_id(2) * blocks
    for block in range(first, min(first + blocks, n_in // BLOCK)):
        group = block if ONE_BLOCK else block * BLOCK // group_size
        word = qweight + (block * step + word_row)[:, None] * across + word_column[None, :]
        zero_word, scale_at = qzeros + group * (n_out // 8) + n // 8, scales + group * n_out + n
        if MASKED:
            known, inside = word_column[None, :] < across, n < n_out
            words, zero, scale = tl.load(word, known, 0), tl.load(zero_word, inside, 0), tl.load(scale_at, inside, 0.0)
        else:
            words, zero, scale = tl.load(word), tl.load(zero_word), tl.load(scale_at)
        if AWQ:
            odd = tl.load(word + across, word_column[None, :] < across, 0) if MASKED else tl.load(word + across)
            codes = _awq_tile(words, odd, FLOAT, SWAPPED)
        else:
            codes = _gptq_tile(words, FLOAT, PAIRS)
        zero = ((zero >> (nibble * 4)) + ZERO_OFFSET) & 15
        origin = (zero | (0x6400 if tl.float16 == FLOAT else 0x4300)).to(tl.int16).to(FLOAT, bitcast=True)[None, :]
        values = tl.load(x + rows[:, None] * n_in + (block * BLOCK + channel)[None, :], mask=rows[:, None] < n_rows, other=0.0)
        if WIDEN:
            values, weights = values.to(tl.float32), codes.to(tl.float32) - origin.to(tl.float32)
        else:
            weights = codes - origin
        if SWAPPED:
            total += tl.dot(tl.trans(weights), tl.trans(values)) * scale.to(tl.float32)[:, None]
        else:
            total += tl.dot(values, weights) * scale.to(tl.float32)[None, :]
    if SWAPPED:
        total = tl.trans(total)
    out = partial + (tl.program_id(2) * n_rows + rows)[:, None] * n_out + n[None, :]
    tl.store(out, total, mask=(rows[:, None] < n_rows) & (n[None, :] < n_out))


@triton.jit
def _sum(partial, out, size, splits, SIZE: tl.constexpr):
    """out[i] = Σ_split partial[split, i], always in the same order."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for split in range(splits):
        total += tl.load(partial + split * size + i, mask=i < size, other=0.0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < size)


def _compilation(layout: str, dtype: str, at: int, where: str, targets: tuple[str, ...]) -> Compilation:
    c = CONFIGURATIONS[layout, where][at]
    offset = 1 if layout == "gptq" else 0
    return Compilation(
        name=f"matmul_{layout}/{dtype}-{c.rows}{where and '-' + where}",
        kernel=_partial_products,
        signature={
            **dict.fromkeys(("qweight", "qzeros"), "*i32"),
            **{"x": f"*{dtype}", "scales": "*fp16", "partial": "*fp32"},
            **dict.fromkeys(("n_rows", "n_out", "n_in", "group_size", "blocks"), "i32"),
        },
        constants=_constants(layout, c, c.channels, offset, one_block=c.channels == 128, masked=False, widen=False),
        aligned=("x", "qweight", "qzeros", "scales", "partial", "n_out", "n_in", "group_size"),
        num_warps=c.num_warps,
        num_stages=c.num_stages,
        weights=c.columns * c.channels,
        bytes_read=c.columns * c.channels * (0.5 + 2.5 / 128),
        tensor_cores=True,
        wide_loads=False,
        why_narrow="a word goes to the thread whose operands its codes are: 32 bits each, eight side by side",
        targets=targets,
    )


SUMMING = Compilation(
    name="matmul_sum",
    kernel=_sum,
    signature={"partial": "*fp32", "out": "*fp16", "size": "i32", "splits": "i32"},
    constants={"SIZE": SUM},
    aligned=("partial", "out", "size"),
    num_warps=SUM_WARPS,
    num_stages=SUM_STAGES,
)
OTHERS = tuple(t for t in TARGETS if t not in ("sm_90", "gfx942"))
COMPILATIONS = (
    SUMMING,
    *(
        _compilation(layout, dtype, at, where, targets)
        for where, targets in (("", OTHERS), ("sm_90", ("sm_90",)), ("gfx942", ("gfx942",)))
        for layout, dtype, at in (
            ("gptq", "fp16", 0),
            ("gptq", "bf16", 0),
            ("gptq", "fp16", 1),
            ("awq", "fp16", 0),
            ("awq", "bf16", 0),
            ("awq", "fp16", 1),
        )
    ),
)
