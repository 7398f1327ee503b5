"""Float weights to the bytes of ggml's block types: one operator for all of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from . import kquant, legacy
from ._ops import add_op_namespace_prefix
from .ggml_types import GGML_TYPES

Encoder = Callable[[Tensor, Tensor | None, str], Tensor]

ENCODERS: dict[str, Encoder] = {
    "F32": legacy.encode_f32,
    "F16": legacy.encode_f16,
    "BF16": legacy.encode_bf16,
    "Q8_0": legacy.encode_q8_0,
    "Q4_0": legacy.encode_q4_0,
    "Q4_1": legacy.encode_q4_1,
    "Q5_0": legacy.encode_q5_0,
    "Q5_1": legacy.encode_q5_1,
    "Q4_K": kquant.encode_q4_k,
    "Q5_K": kquant.encode_q5_k,
    "Q6_K": kquant.encode_q6_k,
}

# weights per chunk: bounds the float32 copies, some ten of them per thread
CHUNK_WEIGHTS = 1 << 20
# blocks are padded to a multiple of this, for which sums over columns run in ggml's order
ALIGNMENT = 64


def _encode_chunk(blocks: Tensor, importance: Tensor | None, encoder: Encoder, mode: str) -> Tensor:
    n = len(blocks)
    missing = -n % ALIGNMENT
    if missing:
        blocks = torch.cat((blocks, blocks.new_zeros(missing, blocks.shape[1])))
        if importance is not None:
            importance = torch.cat((importance, importance.new_ones(missing, importance.shape[1])))
    return encoder(blocks, importance, mode)[:n]


def _each(encode: Callable[[int], None], starts: range, device: torch.device) -> None:
    """Calls `encode` for every chunk. On a CPU each chunk has a thread of its own whose operations are not split further:
    splitting each of them costs more in waiting than it gains."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        list(map(encode, starts))
        return
    torch.set_num_threads(1)  # what threads started from here on begin with
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(encode, starts))
    finally:
        torch.set_num_threads(threads)


@torch.library.custom_op(add_op_namespace_prefix("ggml_quantize"), mutates_args=())
def ggml_quantize(weight: Tensor, importance: Tensor | None, type_name: str, mode: str) -> Tensor:
    """Weights [out, in], in a multiple of the block size, importance [in] → uint8 [out, row_bytes] of a type of GGML_TYPES.

    `mode` "reference" gives what ggml gives; "best" lowers Σ importance·error² further within the same bytes.
    """
    kind = GGML_TYPES[type_name]
    blocks = weight.reshape(-1, kind.block_size)
    per_row = weight.shape[1] // kind.block_size
    columns = None if importance is None else importance.float().view(per_row, kind.block_size)
    out = torch.empty(len(blocks), kind.type_size, dtype=torch.uint8, device=weight.device)
    share = -(-len(blocks) // (torch.get_num_threads() * ALIGNMENT)) * ALIGNMENT
    step = max(1, min(share, CHUNK_WEIGHTS // kind.block_size))
    encoder = ENCODERS[type_name]

    def encode(start: int) -> None:
        part = blocks[start : start + step].float()
        place = torch.arange(start, start + len(part), device=weight.device) % per_row
        out[start : start + step] = _encode_chunk(part, None if columns is None else columns[place], encoder, mode)

    _each(encode, range(0, len(blocks), step), weight.device)
    return out.view(weight.shape[0], -1)


@ggml_quantize.register_fake
def _(weight: Tensor, importance: Tensor | None, type_name: str, mode: str) -> Tensor:
    kind = GGML_TYPES[type_name]
    return weight.new_empty(weight.shape[0], weight.shape[1] // kind.block_size * kind.type_size, dtype=torch.uint8)
