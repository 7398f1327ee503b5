"""Blocks of weights turned into columns, one sub-block per column, so that every step of an encoder is one vector operation."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# weights whose columns, and what is computed of them, stay in a core's cache
CACHE_WEIGHTS = 1 << 16


class Blocks(NamedTuple):
    """n blocks of one type. x and importance (or None) are float32 [n, size], row_square [n] is the mean square of the row
    that a block is from (given with importance for the types that weigh by it), best asks for more than ggml's own search."""

    x: Tensor
    importance: Tensor | None
    row_square: Tensor | None
    best: bool

    def parts(self) -> Iterator["Blocks"]:
        """The same blocks, a cacheful at a time; all at once where there is no such cache."""
        step = CACHE_WEIGHTS // self.x.shape[1] if self.x.device.type == "cpu" else len(self.x)
        for start in range(0, len(self.x), step):
            x, importance, row_square = (None if t is None else t[start : start + step] for t in self[:3])
            assert x is not None
            yield Blocks(x, importance, row_square, self.best)

    def weights(self) -> Tensor | None:
        """The weights of the squared error [n, size]: at least 10⁻⁸ of the block's mean, so that no weight is forgotten."""
        if self.importance is None:
            return None
        mean = self.importance.mean(1, keepdim=True)
        return torch.where(mean > 0, torch.maximum(self.importance, 1e-8 * mean), torch.ones_like(mean))


def columns(blocks: Tensor, size: int) -> Tensor:
    """[n, k·size] → [size/16, 16, k·n], a copy: sub-block g of block b is column g·n + b."""
    turned = blocks.view(len(blocks), -1, size).permute(2, 1, 0)
    return turned.clone(memory_format=torch.contiguous_format).view(size // 16, 16, -1)


def rows(codes: Tensor, n: int) -> Tensor:
    """The inverse of `columns` for n blocks, as uint8 [n, k·size]."""
    return codes.to(torch.uint8).view(codes.shape[0] * 16, -1, n).permute(2, 1, 0).contiguous().view(n, -1)


def stored(x: Tensor) -> Tensor:
    """[n] → the nearest finite float16 [n, 1]."""
    return x.clamp(-65504.0, 65504.0).to(torch.float16).view(-1, 1)


def rounded16(x: Tensor) -> Tensor:
    """The nearest finite float16, as float32."""
    return x.clamp(-65504.0, 65504.0).to(torch.float16).float()


def exact_root(x: Tensor) -> Tensor:
    """√x rounded correctly; float32 `sqrt` is an ulp off for some, and ggml's is not."""
    return x.double().sqrt_().float()
