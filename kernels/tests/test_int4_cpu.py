"""Codes in the order of torch's int4 product on CPUs: back again, and that product against the weight written out."""

import pytest
import torch
from hubquant_kernels import int4_cpu
from torch import Tensor


def codes(n_out: int, n_in: int) -> Tensor:
    return torch.randint(0, 16, (n_out, n_in), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("n_out", [16, 32, 48, 64, 80, 112, 128, 1040, 1104])
def test_codes_come_back(n_out: int) -> None:
    """Whole blocks, blocks of every smaller size at the end, and more rows than are packed at once."""
    assert int4_cpu.fits(n_out, 64, 32)
    assert torch.equal(int4_cpu.codes_of(int4_cpu.repack(codes(n_out, 64))), codes(n_out, 64))


def test_parts_are_packed_as_the_whole_is() -> None:
    whole = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes(1104, 32).int(), 1)
    assert torch.equal(int4_cpu.repack(codes(1104, 32)), whole)


@pytest.mark.parametrize(("n_out", "n_in", "group_size"), [(24, 64, 32), (64, 80, 32), (64, 96, 48), (64, 64, 16)])
def test_sizes_that_torch_has_no_product_for(n_out: int, n_in: int, group_size: int) -> None:
    assert not int4_cpu.fits(n_out, n_in, group_size)


@pytest.mark.parametrize(("group_size", "n_groups"), [(32, 4), (96, 2), (512, 1)])
def test_exact_where_bfloat16_is(group_size: int, n_groups: int) -> None:
    """Powers of two and small whole numbers have no rounding; groups larger than torch's are several of its."""
    n_in = group_size * n_groups
    scales = 2.0 ** torch.randint(-3, 1, (n_groups, 48), generator=torch.Generator().manual_seed(1)).half()
    zeros = codes(n_groups, 48)
    weight = (codes(48, n_in).float().unflatten(1, (n_groups, -1)) - zeros.T.float()[..., None]) * scales.T.float()[..., None]
    packed, pairs = int4_cpu.repack(codes(48, n_in)), int4_cpu.grid(scales, zeros, group_size)
    x = torch.eye(n_in)[:40].bfloat16()
    assert torch.equal(int4_cpu.matmul_repacked(x, packed, pairs, scales, zeros).float(), weight.flatten(1).T[:40])


def test_operator_keeps_torchs_rules() -> None:
    zeros, scales = codes(2, 32), torch.full((2, 32), 0.1).half()
    packed, pairs = int4_cpu.repack(codes(32, 64)), int4_cpu.grid(scales, zeros, 32)
    for x in (torch.randn(2, 64, requires_grad=True), torch.randn(1, 3, 64).bfloat16()):
        torch.library.opcheck(int4_cpu.matmul_repacked, (x, packed, pairs, scales, zeros), rtol=0.02, atol=0.02)
