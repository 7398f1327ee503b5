"""The decoding kernel against the definition, bit for bit: products and sums are the same float32 operations."""

import pytest
import torch
from hubquant_kernels.ggml_dequantize import ggml_dequantize as definition
from hubquant_kernels.ggml_types import GGML_TYPES
from hubquant_kernels.gpu.ggml_dequantize import ggml_dequantize
from hubquant_kernels.gpu.ggml_layout import TYPES
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in")  # infinities and NaN are among the random scales


def random_blocks(name: str, rows: int, blocks: int, seed: int = 0) -> Tensor:
    """Any bytes are blocks: every code, denormal and infinite scales, NaN."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, blocks * GGML_TYPES[name].type_size), dtype=torch.uint8, generator=generator)


def assert_same(data: Tensor, name: str, dtype: torch.dtype, interpreted: bool = True) -> None:
    expected = definition(data, name, dtype)
    if dtype == torch.bfloat16 and interpreted:  # the interpreter cuts the lower bits off where a GPU rounds
        expected = (definition(data, name).view(torch.int32) & -65536).view(torch.float32).to(dtype)
    torch.testing.assert_close(ggml_dequantize(data, name, dtype), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", TYPES)
def test_bits_are_the_definitions(name: str, device: str) -> None:
    for rows, blocks, dtype in ((5, 3, torch.float32), (1, 1, torch.float16), (3, 7, torch.bfloat16), (2, 40, torch.float32)):
        assert_same(random_blocks(name, rows, blocks, seed=rows), name, dtype, interpreted=device == "cpu")


def test_views_and_no_rows() -> None:
    data = random_blocks("Q6_K", 6, 2)
    assert_same(data[1:5], "Q6_K", torch.float32)
    assert_same(data[::2], "Q6_K", torch.float32)
    assert ggml_dequantize(data[:0], "Q6_K").shape == (0, 512)


def test_other_types_go_to_the_definition() -> None:
    assert_same(random_blocks("TQ2_0", 2, 2), "TQ2_0", torch.float16)


def test_rows_that_are_no_blocks_are_named() -> None:
    with pytest.raises(ValueError, match="rows of 145 bytes are no whole number of Q4_K blocks of 144"):
        ggml_dequantize(torch.zeros(2, 145, dtype=torch.uint8), "Q4_K")
