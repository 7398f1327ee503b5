"""W4A16 products from packed words in Triton's interpreter, against the dense weight of the definition."""

from typing import Any

import pytest
import torch
from hubquant_kernels import int4_matmul as definition
from hubquant_kernels.gpu import int4_dequantize, int4_matmul
from hubquant_kernels.gpu.int4_matmul import CONFIGURATIONS, Configuration
from torch import Tensor

FORMATS = ("gptq", "awq")


def words(*shape: int, seed: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int32)


def layer(layout: str, n_in: int, n_out: int, n_groups: int, bits: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    scales = (0.02 * torch.randn(n_groups, n_out, generator=torch.Generator().manual_seed(9))).half()
    if layout == "gptq":
        return words(n_in * bits // 32, n_out, seed=1), words(n_groups, n_out * bits // 32, seed=2), scales
    return words(n_in, n_out // 8, seed=3), words(n_groups, n_out // 8, seed=4), scales


def activations(n_rows: int, n_in: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n_rows, n_in, generator=torch.Generator().manual_seed(5)).to(dtype)


def products(layout: str, x: Tensor, tensors: tuple[Tensor, ...], zero_offset: int = 1) -> tuple[Tensor, Tensor]:
    """Ours and the dense weight [out, in]."""
    if layout == "gptq":
        dense = definition.dequantize_gptq(*tensors, None, 4, zero_offset)
        return int4_matmul.matmul_gptq(x, *tensors, None, 4, zero_offset), dense
    return int4_matmul.matmul_awq(x, *tensors), definition.dequantize_awq(*tensors)


def assert_product(out: Tensor, x: Tensor, dense: Tensor) -> None:
    """Codes, zeros and their difference are exact, products too (4 + 11 bits); float32 rounds each of the `in` sums, each
    scaling of a group's sum and each sum over groups: within (in + 2) 2⁻²³ Σ|x||w|, where a sum within a group has terms up
    to its own |x| (code − zero) s = |x||w|. Then one rounding to the result's type."""
    exact = x.double() @ dense.double().T
    bound = (x.shape[1] + 2) * 2.0**-23 * (x.double().abs() @ dense.double().abs().T)
    rounding = torch.finfo(x.dtype).eps / (1 if x.dtype == torch.bfloat16 else 2)
    bound += rounding * (exact.abs() + bound) + torch.finfo(x.dtype).smallest_normal
    assert out.dtype == x.dtype
    assert bool(((out.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("n_rows", "n_in", "n_out", "n_groups"),
    [
        (1, 256, 256, 2),  # one row, a tile that is full
        (5, 640, 264, 5),  # an odd number of splits, columns beyond the first tile
        (16, 256, 8, 8),  # groups of 32, one word of columns
        (17, 512, 136, 1),  # one group for all channels; more rows than the smallest tile
        (33, 192, 48, 3),  # groups of 64, a second tile of rows with one row in it
    ],
)
def test_products_are_those_with_the_dense_weight(
    layout: str, dtype: torch.dtype, n_rows: int, n_in: int, n_out: int, n_groups: int
) -> None:
    x = activations(n_rows, n_in, dtype)
    out, dense = products(layout, x, layer(layout, n_in, n_out, n_groups))
    assert_product(out, x, dense)


@pytest.mark.parametrize(("layout", "where"), CONFIGURATIONS)
def test_every_shipped_configuration_computes_the_same(layout: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of channels and columns differs between targets: it must cancel out, whatever the target."""
    for configuration in CONFIGURATIONS[layout, where]:
        monkeypatch.setitem(CONFIGURATIONS, (layout, ""), (configuration, configuration))
        x = activations(3, 256, torch.float16)
        out, dense = products(layout, x, layer(layout, 256, configuration.columns + 8, 2))
        assert_product(out, x, dense)


@pytest.mark.parametrize("layout", FORMATS)
def test_every_channel_and_column_is_in_its_place(layout: str) -> None:
    """Rows of the identity read the weight itself: exact in float16 where |code − zero| s is."""
    tensors = layer(layout, 128, 256, 2)
    tensors[2].fill_(0.5)
    for first in range(0, 128, 64):
        x = torch.eye(128)[first : first + 64].half()
        out, dense = products(layout, x, tensors)
        assert torch.equal(out.float(), dense.T[first : first + 64])


@pytest.mark.parametrize("zero_offset", [0, 1])
def test_version_1_stores_a_zero_less_one(zero_offset: int) -> None:
    """Also where the stored zero is the largest code, whose zero is 0."""
    qweight, qzeros, scales = layer("gptq", 128, 64, 1)
    qzeros[:] = torch.tensor([-1, 0, 0x01234567, 0x76543210, 0, -1, 1, 0x7FFFFFFF], dtype=torch.int64).to(torch.int32)
    x = activations(2, 128, torch.float16)
    out, dense = products("gptq", x, (qweight, qzeros, scales), zero_offset)
    assert_product(out, x, dense)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("value", [0.0, 2.0**-24, 6e4])
def test_zeros_denormals_and_large_activations(layout: str, value: float) -> None:
    x = torch.full((2, 128), value).half()
    tensors = layer(layout, 128, 64, 1)
    tensors[2].mul_(2.0**-6)  # what 128 times 6e4 times 15 makes stays in float16's range
    tensors[2][0, :8] = 0
    out, dense = products(layout, x, tensors)
    assert_product(out, x, dense)


@pytest.mark.parametrize("layout", FORMATS)
def test_what_the_tiles_cannot_do_is_done_with_the_decoded_weight(layout: str) -> None:
    """float32 activations, groups that are not whole blocks, and many rows."""
    for x, n_groups in ((activations(2, 128, torch.float32), 1), (activations(2, 96, torch.float16), 4)):
        out, dense = products(layout, x, layer(layout, x.shape[1], 32, n_groups))
        half = dense.to(x.dtype).float()  # the weight is rounded to x's type before the product
        assert_product(out, x, half)
    x = activations(200, 64, torch.float16)
    out, dense = products(layout, x, layer(layout, 64, 32, 1))
    assert_product(out, x, dense.half().float())


def test_sums_over_splits_are_the_same_every_time() -> None:
    x, tensors = activations(1, 1024, torch.float16), layer("gptq", 1024, 64, 8)
    first, _ = products("gptq", x, tensors)
    assert torch.equal(first, products("gptq", x, tensors)[0])


def test_leading_dimensions_are_kept() -> None:
    x = activations(6, 128, torch.float16)
    out, _ = products("gptq", x.view(2, 3, 128), layer("gptq", 128, 64, 1))
    assert out.shape == (2, 3, 64)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero_offset", [0, 1])
def test_gptqs_words_decode_bit_for_bit(bits: int, zero_offset: int) -> None:
    tensors = layer("gptq", 96, 96, 3, bits)
    order = torch.randint(0, 3, (96,), generator=torch.Generator().manual_seed(6)).to(torch.int32)
    for g_idx in (None, order):
        ours: Any = int4_dequantize.dequantize_gptq(*tensors, g_idx, bits, zero_offset)
        assert torch.equal(ours, definition.dequantize_gptq(*tensors, g_idx, bits, zero_offset))


def test_awqs_words_decode_bit_for_bit() -> None:
    tensors = layer("awq", 96, 72, 3)
    assert torch.equal(int4_dequantize.dequantize_awq(*tensors), definition.dequantize_awq(*tensors))


def test_configurations_fit_what_the_orders_are_made_for() -> None:
    for (layout, _), configurations in CONFIGURATIONS.items():
        for c in configurations:
            assert isinstance(c, Configuration)
            assert c.pairs in (2, 4)
            assert layout != "awq" or (c.columns, c.num_warps) == (256, 4)
