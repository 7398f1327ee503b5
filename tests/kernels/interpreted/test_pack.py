"""Rounding, packing and repacking in Triton's interpreter: the very words of the definition."""

import pytest
import torch
from hubquant_kernels import pack as definition
from hubquant_kernels.gpu import pack
from torch import Tensor

LAYOUTS = [("gptq", 2), ("gptq", 3), ("gptq", 4), ("gptq", 8), ("awq", 4)]


def grid(n_out: int, n_groups: int, bits: int) -> tuple[Tensor, Tensor]:
    """Scales of either sign, as symmetric grids have them, and any zeros."""
    random = torch.Generator().manual_seed(n_out)
    scales = (0.02 * torch.randn(n_out, n_groups, generator=random)).half()
    return scales, torch.randint(0, 2**bits, (n_out, n_groups), generator=random).to(torch.uint8)


def assert_words(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int, layout: str) -> None:
    ours = pack.round_and_pack(weight, scales, zeros, bits, layout)
    assert torch.equal(ours, definition.round_and_pack(weight, scales, zeros, bits, layout))


@pytest.mark.parametrize(("layout", "bits"), LAYOUTS)
@pytest.mark.parametrize(("n_out", "n_in", "n_groups"), [(8, 32, 1), (40, 160, 5), (72, 288, 3)])
def test_words_are_those_of_the_definition(layout: str, bits: int, n_out: int, n_in: int, n_groups: int) -> None:
    """Less than a tile, and tiles that are not full on either side; about a third of the weights beyond the grid."""
    weight = 0.02 * 2**bits * torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(0))
    assert_words(weight, *grid(n_out, n_groups, bits), bits, layout)


@pytest.mark.parametrize(("layout", "bits"), LAYOUTS)
def test_ties_go_to_the_even_code(layout: str, bits: int) -> None:
    weight = (torch.arange(32 * 64).view(32, 64) % 2 ** (bits + 1) - 2**bits) * 0.25  # every half step of a grid of 0.5
    zeros = torch.full((32, 2), 2 ** (bits - 1), dtype=torch.uint8)
    assert_words(weight, torch.full((32, 2), 0.5).half(), zeros, bits, layout)


@pytest.mark.parametrize(("layout", "bits"), LAYOUTS)
def test_zeros_denormals_constants_and_huge_weights(layout: str, bits: int) -> None:
    """The smallest scale that is stored, on weights that are nothing, all alike or far beyond any grid."""
    values = (0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, float("inf"), float("-inf"))
    weight = torch.tensor(values).repeat_interleave(32)[:, None].expand(-1, 32).contiguous()
    scales = torch.full((weight.shape[0], 1), 2.0**-14).half()
    assert_words(weight, scales, torch.ones(weight.shape[0], 1, dtype=torch.uint8), bits, layout)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 16), (9, 17), (20, 3)])
def test_words_of_the_other_layout(rows: int, columns: int) -> None:
    random = torch.Generator().manual_seed(0)
    gptq = torch.randint(-(2**31), 2**31, (rows, columns * 8), generator=random).to(torch.int32)
    awq = pack.repack_words(gptq, "awq")
    assert torch.equal(awq, definition.repack_words(gptq, "awq"))
    assert torch.equal(pack.repack_words(awq, "gptq"), gptq)
