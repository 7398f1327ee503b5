"""ggml's block types back to floats: one program reads a few hundred bytes and writes their weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ggml_dequantize import ggml_dequantize as operator
from ..ggml_types import GGML_TYPES
from .compilation import Compilation
from .ggml_layout import TYPES, UNITS, decode

# weights per program: with 4 warps 16 per thread, four stores of 16 bytes in float32
WEIGHTS = 2048
SHIPPED = ("Q4_0", "Q8_0", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS")


@triton.jit
def _dequantize(
    data, words, halves, out, n_blocks,
    TYPE: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, UNIT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """d·(code − offset), d·code + m, d·sc·(code − offset) or d·sc·code − dmin·m, for BLOCKS blocks."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    known = block < n_blocks
    weight = decode(data, words, halves, tl.where(known, block, 0), TYPE, BLOCK, SIZE, UNIT)
    at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out + at, weight.to(out.dtype.element_ty), mask=known[:, None])


def views(data: Tensor, type_name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes of whole blocks as uint8, as words of UNITS[type_name] bytes and as float16."""
    data = data.contiguous()
    return data, data.view(torch.int16 if UNITS[type_name] == 2 else torch.int32), data.view(torch.float16)


def ggml_dequantize(data: Tensor, type_name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes uint8 [out, row_bytes] of a type of TYPES → [out, in]; other types by the operator's definition."""
    if type_name not in TYPES:
        return operator._init_fn(data, type_name, dtype)
    kind = GGML_TYPES[type_name]
    if data.shape[1] % kind.type_size:
        raise ValueError(f"rows of {data.shape[1]} bytes are no whole number of {type_name} blocks of {kind.type_size}")
    out = data.new_empty(data.shape[0], data.shape[1] // kind.type_size * kind.block_size, dtype=dtype)
    n_blocks, blocks = out.numel() // kind.block_size, WEIGHTS // kind.block_size
    if n_blocks:
        _dequantize[(triton.cdiv(n_blocks, blocks),)](
            *views(data, type_name), out, n_blocks,
            TYPE=type_name, BLOCK=kind.block_size, SIZE=kind.type_size, UNIT=UNITS[type_name], BLOCKS=blocks,
            num_stages=2, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _compilation(type_name: str) -> Compilation:
    kind, unit = GGML_TYPES[type_name], UNITS[type_name]
    return Compilation(
        name=f"ggml_dequantize/{type_name.lower()}",
        kernel=_dequantize,
        signature={"data": "*u8", "words": f"*i{8 * unit}", "halves": "*fp16", "out": "*fp16", "n_blocks": "i32"},
        constants={
            "TYPE": type_name,
            "BLOCK": kind.block_size,
            "SIZE": kind.type_size,
            "UNIT": unit,
            "BLOCKS": WEIGHTS // kind.block_size,
        },
        aligned=("data", "words", "halves", "out"),
        fp_fusion=False,
        weights=WEIGHTS,
        bytes_read=WEIGHTS * (kind.bits_per_weight / 8 + 2),  # and written
        wide_loads=False,
        why_narrow="blocks of 18 to 210 bytes do not begin on multiples of 16; a lane reads the bytes of its own weights",
    )


COMPILATIONS = tuple(_compilation(name) for name in SHIPPED)
