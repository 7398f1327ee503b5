"""Encoders of the types with codes −1, 0, 1 and one float16 scale per 256 weights, x ≈ d·code: TQ1_0, TQ2_0.

ggml's own way takes the largest magnitude for d, which is right for weights that are ternary already.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .ggml_best_symmetric import SymmetricKind, improve_one_level, inverse, peaks
from .ggml_columns import Blocks, stored
from .ggml_layout import pack_tq1_0, pack_tq2_0
from .legacy import round_away

# Gaussian weights want their peak, some 3σ, at 2.5; with tails it lies further out
TERNARY = SymmetricKind(-1, 1, 0, 0, peaks(-1, 1, 0.4, 5.0, 19)[19:])


def _encode(blocks: Blocks, pack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    peak = blocks.x.abs().amax(1)
    d, codes = stored(peak), round_away(blocks.x * inverse(peak)[:, None]).add_(1).to(torch.uint8)
    if blocks.best:
        improve_one_level(blocks, TERNARY, d, codes)
    return pack(d, codes)


def encode_tq1_0(blocks: Blocks) -> Tensor:
    return _encode(blocks, pack_tq1_0)


def encode_tq2_0(blocks: Blocks) -> Tensor:
    return _encode(blocks, pack_tq2_0)
