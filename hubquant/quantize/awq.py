"""AWQ (Lin et al. 2023, arXiv 2306.00978): scale up the input channels that matter before rounding, undo it in the layer before.

What differs from the paper: a channel matters by what its error costs once the channels after it made up for it (error feedback
follows, in AWQ's layout too), not by how loud it is; and a scale is judged by the loss that is to be expected of a rounding under
it, for which nothing needs to be rounded. Clipping is the range search of the grid.
"""

from collections.abc import Sequence

import torch
from hubquant_kernels.grid import group_range
from torch import Tensor

from hubquant.quantize.grid import Grid

RATIOS = 20
STRIDES = (4, 2, 1)  # every fourth ratio, then the neighbours of the best: 9 losses in place of 20


def search_scale(weights: Sequence[Tensor], remaining: Tensor, grid: Grid, channels: Tensor | None = None) -> Tensor:
    """The channel scale s [in] with the least loss to be expected, over s = √remaining^ratio, ratio in [0, 1).

    `weights`: the [out, in] matrices that share the input. `remaining` [in]: what the square of each channel's error costs in the
    end, zero of channels that are never active (statistics.py). An error is as likely anywhere within a step of its group, so the
    loss is Σ step²·Σ remaining/s² over all groups, but for a twelfth. `channels` [in] names the source of each channel where the
    absorber feeds several of them (grouped-query attention): those share one scale.
    """
    sources = _per_source(remaining.sqrt(), channels)
    losses: dict[int, float] = {}

    def scale(step: int) -> Tensor:
        return _normalized(sources.pow(step / RATIOS), sources > 0)

    def best() -> int:
        return min(losses, key=lambda step: (losses[step], step))

    for stride in STRIDES:
        wanted = range(0, RATIOS, stride) if not losses else (best() - stride, best() + stride)
        for step in wanted:
            if 0 <= step < RATIOS and step not in losses:
                losses[step] = sum(expected_loss(w, scale(step), remaining, grid) for w in weights)
    return scale(best())


def expected_loss(weight: Tensor, s: Tensor, remaining: Tensor, grid: Grid) -> float:
    """Twelve times what rounding weight [out, in] times s [in] is expected to add to the loss, with `remaining` [in] as above."""
    steps, _ = group_range((weight * s).unflatten(1, (-1, grid.group_size)), grid.bits, grid.symmetric)
    return float(steps.squeeze(2).square().sum(0) @ (remaining / s.square()).view(-1, grid.group_size).sum(1))


def _per_source(loudness: Tensor, channels: Tensor | None) -> Tensor:
    """Of every channel [in] the mean over the channels of its source."""
    if channels is None:
        return loudness
    n = int(channels.max()) + 1
    total = torch.zeros(n, device=loudness.device).index_add_(0, channels, loudness)
    count = torch.zeros(n, device=loudness.device).index_add_(0, channels, torch.ones_like(loudness))
    return (total / count.clamp_min(1))[channels]


def _normalized(s: Tensor, live: Tensor) -> Tensor:
    """Geometric middle of the live channels at 1; dead channels stay at 1. Bounded, so that float16 holds what is folded."""
    if not bool(live.any()):
        return torch.ones_like(s)
    middle = (s[live].max() * s[live].min()).sqrt()
    return torch.where(live, (s / middle).clamp(1e-3, 1e3), torch.ones_like(s))
