"""Groups stay together, the important ones come first."""

import torch

from hubquant.quantize.order import channel_order


def test_order_goes_by_importance_without_leaving_the_groups() -> None:
    importance = torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0, 0.0, 0.0, 0.0, 3.0, 4.0, 8.0, 4.0])
    assert channel_order(importance, (4,)).tolist() == [4, 5, 6, 7, 10, 9, 11, 8, 1, 2, 3, 0]
    assert channel_order(torch.ones(8), (4,)).tolist() == list(range(8))


def test_the_order_keeps_blocks_and_sub_blocks_together() -> None:
    importance = torch.rand(1024, generator=torch.Generator().manual_seed(3))
    order = channel_order(importance, (256, 32, 16))
    assert sorted(order.tolist()) == list(range(1024))
    for size in (256, 32, 16):
        groups = (order // size).view(-1, size)
        assert bool((groups == groups[:, :1]).all())
    assert int(order[0]) == int(importance.argmax())
    peaks = importance[order].view(-1, 16).amax(1)
    inside = peaks.view(-1, 2)  # the two halves of each sub-block of 32
    assert bool((inside[:, 0] >= inside[:, 1]).all())


def test_without_groups_it_is_the_importance_alone() -> None:
    assert channel_order(torch.tensor([1.0, 3.0, 2.0, 3.0])).tolist() == [1, 3, 2, 0]
