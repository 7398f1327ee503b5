"""AWQ (Lin et al. 2023, arXiv 2306.00978): scale up the input channels that matter before rounding, undo it in the layer before.

What differs from the paper: the loss of a scale is tr(ΔHΔᵀ) from the Hessian, which is exact at the linears' output and
needs no second forward; clipping is the range search of the grid under the same Hessian.
"""

from collections.abc import Sequence

import torch
from hubquant_kernels.awq_search import awq_losses
from torch import Tensor

from hubquant.quantize.grid import Grid

RATIOS = 20
# Of each weight, by which a scale is judged: the channels are the same for all of them.
ROWS = 512
STRIDES = (4, 2, 1)  # every fourth ratio, then the neighbours of the best: 9 losses in place of 20


def search_scale(
    weights: Sequence[Tensor], hessian: Tensor, mean_abs: Tensor, grid: Grid, channels: Tensor | None = None
) -> Tensor:
    """The channel scale s [in] with the least Σ tr(ΔHΔᵀ), Δ = Q(W·s)/s − W, over s = mean_abs^ratio, ratio in [0, 1).

    `weights`: the [out, in] matrices that share the input. `channels` [in] names the source of each channel where the
    absorber feeds several of them (grouped-query attention): those share one scale. Ratio 0 is plain rounding, so the
    result is never worse than that by this loss.
    """
    sources, judges = _per_source(mean_abs, channels), [_some_rows(w) for w in weights]
    losses: dict[int, float] = {}

    def scale(step: int) -> Tensor:
        return _normalized(sources.clamp_min(1e-8).pow(step / RATIOS), sources > 0)

    def best() -> int:
        return min(losses, key=lambda step: (losses[step], step))

    for stride in STRIDES:
        wanted = range(0, RATIOS, stride) if not losses else (best() - stride, best() + stride)
        steps = [step for step in wanted if 0 <= step < RATIOS and step not in losses]
        if steps:
            scales = torch.stack([scale(step) for step in steps])
            by_weight = [awq_losses(w, hessian, scales, grid.bits, grid.group_size, grid.symmetric).tolist() for w in judges]
            losses |= {step: sum(losses_of_one[i] for losses_of_one in by_weight) for i, step in enumerate(steps)}
    return scale(best())


def _some_rows(weight: Tensor) -> Tensor:
    """At most ROWS rows of weight [out, in], drawn alike every time."""
    if len(weight) <= ROWS:
        return weight
    drawn = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))[:ROWS]
    return weight[drawn.sort().values.to(weight.device)]


def _per_source(mean_abs: Tensor, channels: Tensor | None) -> Tensor:
    """mean_abs with every channel replaced by the mean over the channels of its source."""
    if channels is None:
        return mean_abs
    n = int(channels.max()) + 1
    total = torch.zeros(n, device=mean_abs.device).index_add_(0, channels, mean_abs)
    count = torch.zeros(n, device=mean_abs.device).index_add_(0, channels, torch.ones_like(mean_abs))
    return (total / count.clamp_min(1))[channels]


def _normalized(s: Tensor, live: Tensor) -> Tensor:
    """Geometric middle of the live channels at 1; dead channels stay at 1. Bounded, so that float16 holds what is folded."""
    if not bool(live.any()):
        return torch.ones_like(s)
    middle = (s[live].max() * s[live].min()).sqrt()
    return torch.where(live, (s / middle).clamp(1e-3, 1e3), torch.ones_like(s))
