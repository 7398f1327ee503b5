"""Rounding to a grid and packing in one pass over the weight, and AWQ's and GPTQ's words from each other's."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compilation import Compilation

OUTPUTS, CHANNELS = 32, 128  # a tile of the weight
WARPS, STAGES = 4, 2
WORD_ROWS, WORD_COLUMNS = 8, 16  # a tile of words: of eight channels, by eight outputs


def round_and_pack(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int, layout: str) -> Tensor:
    """The operator of that name."""
    (n_out, n_in), n_groups = weight.shape, scales.shape[1]
    shape = (n_in * bits // 32, n_out) if layout == "gptq" else (n_in, n_out * bits // 32)
    qweight = torch.empty(shape, dtype=torch.int32, device=weight.device)
    _round_and_pack[(triton.cdiv(n_out, OUTPUTS), triton.cdiv(n_in, CHANNELS))](
        weight.contiguous(),
        scales.contiguous(),
        zeros.contiguous(),
        qweight,
        n_out,
        n_in,
        n_groups,
        n_in // n_groups,
        **_constants(bits, layout),
        num_warps=WARPS,
        num_stages=STAGES,
        enable_fp_fusion=False,
    )
    return qweight


def repack_words(qweight: Tensor, layout: str) -> Tensor:
    """The operator of that name."""
    rows, columns = qweight.shape
    word_rows, word_columns = (rows, columns // 8) if layout == "awq" else (rows // 8, columns)
    shape = (rows * 8, columns // 8) if layout == "awq" else (rows // 8, columns * 8)
    out = torch.empty(shape, dtype=torch.int32, device=qweight.device)
    _repack[(triton.cdiv(word_rows, WORD_ROWS), triton.cdiv(word_columns, WORD_COLUMNS))](
        qweight.contiguous(),
        out,
        word_rows,
        word_columns,
        TO_AWQ=layout == "awq",
        ROWS=WORD_ROWS,
        COLUMNS=WORD_COLUMNS,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out


@triton.jit
def _codes(weight, scales, zeros, n, k, n_out, n_in, n_groups, group_size, BITS: tl.constexpr):
    """clamp(round(w / scale) + zero, 0, 2^BITS − 1) of outputs n and channels k, 0 outside the weight."""
    inside = (n < n_out) & (k < n_in)
    group = n * n_groups + k // group_size
    w = tl.load(weight + n.to(tl.int64) * n_in + k, mask=inside, other=0.0)
    scale = tl.load(scales + group, mask=inside, other=1.0).to(tl.float32)
    zero = tl.load(zeros + group, mask=inside, other=0).to(tl.float32)
    nearest = (tl.div_rn(w, scale) + 12582912.0) - 12582912.0  # to the nearest whole number below 2^22, ties to even
    return tl.minimum(tl.maximum(nearest + zero, 0.0), (1 << BITS) - 1.0).to(tl.int32)


@triton.jit
def _round_and_pack(
    weight,
    scales,
    zeros,
    qweight,
    n_out,
    n_in,
    n_groups,
    group_size,
    BITS: tl.constexpr,
    UNIT: tl.constexpr,
    AWQ: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Word w of a unit of UNIT codes: Σ_i code_i 2^(BITS i − 32 w), the bits outside the word left out."""
    if AWQ:
        block = tl.program_id(0) * (OUTPUTS // 8) + tl.arange(0, OUTPUTS // 8)
        k = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        column = tl.arange(0, 8)
        n = block[:, None, None] * 8 + column[None, :, None]
        code = _codes(weight, scales, zeros, n, k[None, None, :], n_out, n_in, n_groups, group_size, BITS)
        place = column // 2 + column % 2 * 4  # columns 0 2 4 6 1 3 5 7 stand in one word
        words = tl.sum(code << (place * 4)[None, :, None], axis=1)
        at = qweight + k[None, :].to(tl.int64) * (n_out // 8) + block[:, None]
        tl.store(at, words, mask=(block[:, None] < n_out // 8) & (k[None, :] < n_in))
    else:
        n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
        unit = tl.program_id(1) * (CHANNELS // UNIT) + tl.arange(0, CHANNELS // UNIT)
        i = tl.arange(0, UNIT)
        k = unit[None, :, None] * UNIT + i[None, None, :]
        code = _codes(weight, scales, zeros, n[:, None, None], k, n_out, n_in, n_groups, group_size, BITS)
        for w in tl.static_range(UNIT * BITS // 32):
            start = i * BITS - w * 32
            left, right = tl.minimum(tl.maximum(start, 0), 31), tl.minimum(tl.maximum(-start, 0), 31)
            within = tl.where(start < 32, 1, 0)[None, None, :]
            words = tl.sum(((code >> right[None, None, :]) << left[None, None, :]) * within, axis=2)
            at = qweight + (unit[None, :] * (UNIT * BITS // 32) + w).to(tl.int64) * n_out + n[:, None]
            tl.store(at, words, mask=(n[:, None] < n_out) & (unit[None, :] * UNIT < n_in))


@triton.jit
def _repack(words, out, word_rows, word_columns, TO_AWQ: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Tiles of eight channels by eight outputs, transposed as 8 × 8 codes. GPTQ's word holds channels, AWQ's outputs."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    j = tl.arange(0, 8)
    place = j // 2 + j % 2 * 4
    inside = (row[:, None] < word_rows) & (column[None, :] < word_columns)
    wide = word_columns * 8
    if TO_AWQ:  # j: the output of eight
        at = words + row[:, None, None] * wide + column[None, :, None] * 8 + j[None, None, :]
    else:  # j: the channel of eight
        at = words + (row[:, None, None] * 8 + j[None, None, :]) * word_columns + column[None, :, None]
    held = tl.load(at, mask=inside[:, :, None], other=0)
    for i in tl.static_range(8):
        if TO_AWQ:
            made = tl.sum(((held >> (4 * i)) & 15) << (place * 4)[None, None, :], axis=2)
            to = out + (row[:, None] * 8 + i) * word_columns + column[None, :]
        else:
            made = tl.sum(((held >> (4 * (i // 2 + i % 2 * 4))) & 15) << (j * 4)[None, None, :], axis=2)
            to = out + row[:, None] * wide + column[None, :] * 8 + i
        tl.store(to, made, mask=inside)


def _constants(bits: int, layout: str) -> dict[str, int | bool]:
    unit = math.lcm(bits, 32) // bits
    return {"BITS": bits, "UNIT": unit, "AWQ": layout == "awq", "OUTPUTS": OUTPUTS, "CHANNELS": CHANNELS}


def _rounding(bits: int, layout: str) -> Compilation:
    return Compilation(
        name=f"round_and_pack/{layout}-{bits}",
        kernel=_round_and_pack,
        signature={
            **{"weight": "*fp32", "scales": "*fp16", "zeros": "*u8", "qweight": "*i32"},
            **dict.fromkeys(("n_out", "n_in", "n_groups", "group_size"), "i32"),
        },
        constants=_constants(bits, layout),
        aligned=("weight", "scales", "zeros", "qweight", "n_out", "n_in", "group_size"),
        num_warps=WARPS,
        num_stages=STAGES,
        fp_fusion=False,
    )


def _repacking(layout: str) -> Compilation:
    return Compilation(
        name=f"repack_words/{layout}",
        kernel=_repack,
        signature={"words": "*i32", "out": "*i32", "word_rows": "i32", "word_columns": "i32"},
        constants={"TO_AWQ": layout == "awq", "ROWS": WORD_ROWS, "COLUMNS": WORD_COLUMNS},
        aligned=("words", "out", "word_columns"),
        num_warps=WARPS,
        num_stages=STAGES,
        wide_loads=layout == "awq",
        why_narrow="AWQ's words of eight channels lie in eight rows" * (layout != "awq"),
    )


COMPILATIONS = (_rounding(4, "gptq"), _rounding(3, "gptq"), _rounding(4, "awq"), _repacking("awq"), _repacking("gptq"))
