"""The types IQ1 to IQ3, whose codes are places in lattices: ggml's own encoders and decoders, from the package libgguf."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import libgguf
import numpy as np
import torch
from hubquant_kernels.ggml_types import GgmlType
from torch import Tensor

_TYPES = (
    GgmlType("IQ3_S", 21, 256, 110),
    GgmlType("IQ3_XXS", 18, 256, 98),
    GgmlType("IQ2_S", 22, 256, 82),
    GgmlType("IQ2_XS", 17, 256, 74),
    GgmlType("IQ2_XXS", 16, 256, 66),
    GgmlType("IQ1_M", 29, 256, 56),
    GgmlType("IQ1_S", 19, 256, 50),
)
IQ_TYPES: dict[str, GgmlType] = {t.name: t for t in _TYPES}
# all of them but IQ3_S; llama.cpp writes none of these without an importance matrix (tensor_requires_imatrix)
NEEDS_IMPORTANCE = frozenset(IQ_TYPES) - {"IQ3_S"}

# rows are handed out in pieces of about so many weights; libgguf holds no lock while it works
_PIECE = 1 << 16


def encode(weight: Tensor, kind: GgmlType, importance: Tensor | None) -> Tensor:
    """Weights [out, in] → uint8 [out, row_bytes], as ggml writes them. `importance` [in] or [out, in], the largest of a row about
    1 (ggml's sums are float32, and its search for a lattice point ends the process where one is infinite); where all are zero all
    count alike, and without it go ggml's own weights."""
    rows = weight.detach().float().cpu().contiguous().numpy()
    scaled = None
    if importance is not None:
        scaled = torch.where(importance.amax(-1, keepdim=True) > 0, importance, 1).cpu().contiguous().numpy()
    out = np.empty((rows.shape[0], rows.shape[1] // kind.block_size * kind.type_size), np.uint8)

    def quantize(start: int, end: int) -> None:
        if scaled is None or scaled.ndim == 1:
            libgguf.quantize_rows_into_raw(kind.value, rows[start:end], out[start:end], end - start, rows.shape[1], scaled)
        else:
            for row in range(start, end):
                libgguf.quantize_rows_into_raw(kind.value, rows[row : row + 1], out[row : row + 1], 1, rows.shape[1], scaled[row])

    _each_piece(quantize, *rows.shape)
    return torch.from_numpy(out).to(weight.device)


def decode(data: Tensor, kind: GgmlType) -> Tensor:
    """uint8 [out, row_bytes] → float32 [out, in]."""
    rows = data.cpu().contiguous().numpy()
    out = np.empty((rows.shape[0], rows.shape[1] // kind.type_size * kind.block_size), np.float32)

    def dequantize(start: int, end: int) -> None:
        libgguf.dequantize_rows_into_raw(kind.value, rows[start:end], out[start:end], end - start, out.shape[1])

    _each_piece(dequantize, *out.shape)
    return torch.from_numpy(out).to(data.device)


def _each_piece(work: Callable[[int, int], None], n_rows: int, n_per_row: int) -> None:
    """Calls `work` with the first and the last row + 1 of every piece, from as many threads as torch uses."""
    step = max(1, _PIECE // max(n_per_row, 1))
    starts = range(0, n_rows, step)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(work, starts, (min(start + step, n_rows) for start in starts)))
