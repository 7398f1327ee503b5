"""The order in which the channels of an input are rounded: by importance, whole groups of them kept together."""

from collections.abc import Sequence

from torch import Tensor


def channel_order(importance: Tensor, sizes: Sequence[int] = ()) -> Tensor:
    """Channels [in] by falling importance [in], in stretches of sizes[0] that come by their largest, inside of these in stretches
    of sizes[1], and so on. Each size divides the one before, and the first one the channels; equal ones stay in their order."""
    order = importance.argsort(descending=True, stable=True)
    for size in reversed(sizes):
        peaks = importance.view(-1, size).amax(dim=1)
        rank = peaks.argsort(descending=True, stable=True).argsort()
        order = order[rank[order // size].argsort(stable=True)]
    return order
