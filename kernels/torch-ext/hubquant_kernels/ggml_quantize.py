"""Float weights to the bytes of ggml's block types: one operator for all of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from . import kquant, kquant_symmetric, legacy, mxfp4, native, ternary
from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu
from .ggml_columns import Blocks
from .ggml_range import check_values, largest_magnitude
from .ggml_search import ColumnSum
from .ggml_types import GGML_TYPES

ENCODERS: dict[str, Callable[[Blocks], Tensor]] = {
    "F32": legacy.encode_f32,
    "F16": legacy.encode_f16,
    "BF16": legacy.encode_bf16,
    "Q8_0": legacy.encode_q8_0,
    "Q4_0": legacy.encode_q4_0,
    "Q4_1": legacy.encode_q4_1,
    "Q5_0": legacy.encode_q5_0,
    "Q5_1": legacy.encode_q5_1,
    "IQ4_NL": legacy.encode_iq4_nl,
    "Q2_K": partial(kquant.encode, kquant.Q2_K),
    "Q3_K": kquant_symmetric.encode_q3_k,
    "Q4_K": partial(kquant.encode, kquant.Q4_K),
    "Q5_K": partial(kquant.encode, kquant.Q5_K),
    "Q6_K": kquant_symmetric.encode_q6_k,
    "IQ4_XS": kquant_symmetric.encode_iq4_xs,
    "TQ1_0": ternary.encode_tq1_0,
    "TQ2_0": ternary.encode_tq2_0,
    "MXFP4": mxfp4.encode,
}

# weights per chunk: bounds the float32 copies
CHUNK_WEIGHTS = {"cpu": 1 << 20, "other": 1 << 22}
# blocks are padded to a multiple of this, for which sums over columns run in ggml's order
ALIGNMENT = 64
MAX_THREADS = 8
# where ggml's weights with importance contain the mean square of the row
BY_ROW_SQUARE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")


def _chunk_weights(device: torch.device) -> int:
    return CHUNK_WEIGHTS.get(device.type, CHUNK_WEIGHTS["other"])


def _padded(x: Tensor | None, fill: float) -> Tensor | None:
    if x is None or len(x) % ALIGNMENT == 0:
        return x
    return torch.cat((x, x.new_full((-len(x) % ALIGNMENT, *x.shape[1:]), fill)))


def _row_square(weight: Tensor) -> Tensor:
    """The mean square of each row [out], summed from left to right as ggml does."""
    out, n = weight.shape
    means = torch.empty(out, device=weight.device)
    step = max(ALIGNMENT, _chunk_weights(weight.device) // n // ALIGNMENT * ALIGNMENT)
    for start in range(0, out, step):
        part = weight[start : start + step].float()
        squares = part.new_zeros(n, len(part) + -len(part) % ALIGNMENT)
        torch.mul(part.T, part.T, out=squares[:, : len(part)])
        squares = squares.view(n // 16, 16, -1)
        means[start : start + step] = (ColumnSum(squares).of(squares) / n)[: len(part)]
    return means


def _each(encode: Callable[[int], None], starts: range, threads: int) -> None:
    """Calls `encode` for every chunk, each in a thread of its own whose operations are not split further: splitting each of
    them costs more in waiting than it gains."""
    if threads == 1:
        list(map(encode, starts))
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # what threads started from here on begin with
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(encode, starts))
    finally:
        torch.set_num_threads(before)


@torch.library.custom_op(add_op_namespace_prefix("ggml_quantize"), mutates_args=())
def ggml_quantize(weight: Tensor, importance: Tensor | None, type_name: str, mode: str) -> Tensor:
    """Weights [out, in], in a multiple of the block size, importance [in] or [out, in] → uint8 [out, row_bytes] of a type of
    GGML_TYPES.

    `mode` "reference" gives what ggml gives; "best" lowers Σ importance·error² further within the same bytes. On a CPU machine
    code does so where there is a compiler (native.py). On a GPU "best" gives other bytes with about the same error
    (gpu/ggml_quantize.py). Raises OutOfRange on NaN, infinite or too large weights.
    """
    kind, encoder = GGML_TYPES[type_name], ENCODERS[type_name]
    blocks = weight.detach().reshape(-1, kind.block_size)
    per_row = weight.shape[1] // kind.block_size
    importance = None if importance is None else importance.detach().float().contiguous()
    importance_blocks = None if importance is None else importance.view(-1, kind.block_size)
    row_square = _row_square(weight.detach()) if importance is not None and type_name in BY_ROW_SQUARE else None
    out = torch.empty(len(blocks), kind.type_size, dtype=torch.uint8, device=weight.device)
    threads = min(torch.get_num_threads(), MAX_THREADS) if weight.device.type == "cpu" else 1
    share = -(-len(blocks) // (threads * ALIGNMENT)) * ALIGNMENT
    step = max(ALIGNMENT, min(share, _chunk_weights(weight.device) // kind.block_size))
    code = native.encoder(type_name) if weight.device.type == "cpu" else None

    def encode(start: int) -> None:
        x = blocks[start : start + step].float()
        if code is not None:
            largest = code(x, start, per_row, importance, row_square, mode == "best", out[start : start + step])
            check_values(weight, type_name, largest)
            return
        check_values(weight, type_name, largest_magnitude(x))
        place = torch.arange(start, start + len(x), device=x.device)
        part_importance = None if importance_blocks is None else importance_blocks[place % len(importance_blocks)]
        part_square = None if row_square is None else row_square[place // per_row]
        filled = _padded(x, 0.0)
        assert filled is not None
        part = Blocks(filled, _padded(part_importance, 1.0), _padded(part_square, 1.0), mode == "best")
        out[start : start + step] = encoder(part)[: len(x)]

    _each(encode, range(0, len(blocks), step), threads)
    return out.view(weight.shape[0], per_row * kind.type_size)


@ggml_quantize.register_fake
def _(weight: Tensor, importance: Tensor | None, type_name: str, mode: str) -> Tensor:
    kind = GGML_TYPES[type_name]
    return weight.new_empty(weight.shape[0], weight.shape[1] // kind.block_size * kind.type_size, dtype=torch.uint8)


def _by_column(weight: Tensor, importance: Tensor | None, *options: str) -> bool:
    return importance is None or importance.ndim == 1


on_gpu(ggml_quantize, "ggml_quantize", accepts=_by_column)
