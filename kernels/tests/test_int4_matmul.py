"""Decoding of the packed layouts against one written out element by element, and the products with them."""

import pytest
import torch
from hubquant_kernels.int4_matmul import dequantize_awq, dequantize_gptq, matmul_awq, matmul_gptq
from torch import Tensor

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def words(*shape: int, seed: int) -> Tensor:
    """Random int32 words, negative ones too: every code occurs at every position."""
    return torch.randint(-(2**31), 2**31, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int32)


def scales(*shape: int) -> Tensor:
    """Signed, as symmetric grids have them."""
    return (0.02 * torch.randn(*shape, generator=torch.Generator().manual_seed(9))).half()


def gptq_layer(bits: int, in_features: int, out_features: int, n_groups: int, g_idx: Tensor) -> tuple[Tensor, ...]:
    return (
        words(in_features * bits // 32, out_features, seed=1),
        words(n_groups, out_features * bits // 32, seed=2),
        scales(n_groups, out_features),
        g_idx.to(torch.int32),
    )


def awq_layer(in_features: int, out_features: int, n_groups: int) -> tuple[Tensor, ...]:
    return words(in_features, out_features // 8, seed=3), words(n_groups, out_features // 8, seed=4), scales(n_groups, out_features)


def field(words: Tensor, bits: int, position: int) -> int:
    """Code `position` of a stream of words: Python's unbounded integers."""
    stream = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words))
    return stream >> (bits * position) & (2**bits - 1)


def gptq_reference(qweight: Tensor, qzeros: Tensor, scale: Tensor, g_idx: Tensor, bits: int, zero_offset: int) -> Tensor:
    """W[o, i] = (code − zero) · scale, from the description of the layout alone."""
    n_in, n_out = g_idx.shape[0], qweight.shape[1]
    dense = torch.empty(n_out, n_in)
    for o in range(n_out):
        for i in range(n_in):
            group = int(g_idx[i])
            code = field(qweight[:, o], bits, i)
            zero = (field(qzeros[group], bits, o) + zero_offset) % 2**bits
            dense[o, i] = (code - zero) * float(scale[group, o])
    return dense


def awq_reference(qweight: Tensor, qzeros: Tensor, scale: Tensor) -> Tensor:
    n_in, n_out = qweight.shape[0], scale.shape[1]
    group_size = n_in // scale.shape[0]
    dense = torch.empty(n_out, n_in)
    for o in range(n_out):
        position = AWQ_COLUMNS.index(o % 8)
        for i in range(n_in):
            group = i // group_size
            code = field(qweight[i, o // 8 : o // 8 + 1], 4, position)
            zero = field(qzeros[group, o // 8 : o // 8 + 1], 4, position)
            dense[o, i] = (code - zero) * float(scale[group, o])
    return dense


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero_offset", [0, 1])
def test_gptq_weights_are_those_of_the_layout(bits: int, zero_offset: int) -> None:
    layer = gptq_layer(bits, 64, 32, 4, torch.arange(64) // 16)
    dense = dequantize_gptq(*layer, bits, zero_offset)
    assert dense.dtype == torch.float32
    assert torch.equal(dense, gptq_reference(*layer, bits, zero_offset))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_channels_may_belong_to_any_group(bits: int) -> None:
    """desc_act spreads the channels over the groups: unordered, of unequal size, a group that nothing uses."""
    g_idx = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(0))
    layer = gptq_layer(bits, 64, 32, 4, g_idx)
    assert torch.equal(dequantize_gptq(*layer, bits, 1), gptq_reference(*layer, bits, 1))


def test_gptq_without_g_idx_has_its_groups_in_order() -> None:
    layer = gptq_layer(4, 64, 32, 4, torch.arange(64) // 16)
    assert torch.equal(dequantize_gptq(*layer[:3], None, 4, 1), dequantize_gptq(*layer, 4, 1))
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(5))
    assert torch.equal(matmul_gptq(x, *layer[:3], None, 4, 1), matmul_gptq(x, *layer, 4, 1))


def test_gptq_may_end_in_a_part_of_a_group() -> None:
    """Other tools write ceil(in / group_size) groups where the width is not a multiple."""
    layer = gptq_layer(4, 80, 16, 3, torch.arange(80) // 32)
    assert torch.equal(dequantize_gptq(*layer, 4, 1), gptq_reference(*layer, 4, 1))


def test_version_1_of_a_zero_stored_as_the_largest_code_is_zero() -> None:
    """zero − 1 of zero 0 wraps around to the largest code."""
    qweight, _, scale, g_idx = gptq_layer(4, 8, 8, 1, torch.zeros(8))
    stored = torch.full((1, 1), -1, dtype=torch.int32)  # 0xF eight times
    zero = torch.zeros(1, 1, dtype=torch.int32)
    assert torch.equal(dequantize_gptq(qweight, stored, scale, g_idx, 4, 1), dequantize_gptq(qweight, zero, scale, g_idx, 4, 0))


def test_awq_weights_are_those_of_the_layout() -> None:
    layer = awq_layer(48, 32, 3)
    dense = dequantize_awq(*layer)
    assert dense.dtype == torch.float32
    assert dense.is_contiguous()
    assert torch.equal(dense, awq_reference(*layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 5, 64)])
def test_products_are_those_with_the_dense_weight(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """In float32: γ_in Σ|x||W|; then one rounding to x's dtype."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    gptq, awq = gptq_layer(4, 64, 32, 4, torch.arange(64) // 16), awq_layer(64, 32, 4)
    for out, dense in ((matmul_gptq(x, *gptq, 4, 1), dequantize_gptq(*gptq, 4, 1)), (matmul_awq(x, *awq), dequantize_awq(*awq))):
        assert out.dtype == dtype
        assert out.shape == (*shape[:-1], 32)
        exact = x.double() @ dense.double().T
        bound = 65 * 2.0**-24 * (x.double().abs() @ dense.double().abs().T)
        bound += torch.finfo(dtype).eps / 2 * (exact.abs() + bound) + torch.finfo(dtype).smallest_normal
        assert bool(((out.double() - exact).abs() <= bound).all())


def test_operators_keep_torchs_rules() -> None:
    gptq, awq = gptq_layer(4, 16, 8, 2, torch.arange(16) // 8), awq_layer(16, 8, 2)
    torch.library.opcheck(dequantize_gptq, (*gptq, 4, 1))
    torch.library.opcheck(matmul_gptq, (torch.randn(2, 16, requires_grad=True), *gptq[:3], None, 4, 1))
    torch.library.opcheck(dequantize_awq, awq)
    for x in (torch.randn(2, 16), torch.randn(1, 2, 16).half()):
        torch.library.opcheck(matmul_gptq, (x, *gptq, 4, 1))
        torch.library.opcheck(matmul_awq, (x, *awq))
