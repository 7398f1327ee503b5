"""A grid says of encoded blocks what decoding them says, and takes other codes into them."""

import pytest
import torch
from hubquant_kernels.ggml_codebook import codebook
from hubquant_kernels.ggml_dequantize import ggml_dequantize
from hubquant_kernels.ggml_grid import GRIDDED, BlockGrid, block_grid
from hubquant_kernels.ggml_quantize import ggml_quantize
from hubquant_kernels.ggml_types import GGML_TYPES
from torch import Tensor


def values(grid: BlockGrid, codes: Tensor) -> Tensor:
    """[n, block_size] of codes, in the order of operations of ggml's decoders."""
    by_sub_block = codes.view(len(codes), -1, grid.size)
    level = codebook(codes.device)[by_sub_block.long()] if grid.top is None else by_sub_block.float() - grid.zero
    value = grid.scale[..., None] * level
    return (value if grid.minimum is None else value - grid.minimum[..., None]).flatten(1)


@pytest.mark.parametrize("type_name", GRIDDED)
def test_any_codes_can_be_put_into_the_blocks(type_name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(16, 512, generator=generator)
    kind = GGML_TYPES[type_name]
    data = ggml_quantize(weight, None, type_name, "reference").view(-1, kind.type_size)
    grid = block_grid(data, type_name)
    assert torch.equal(grid.recode(grid.codes), data)
    assert grid.scale.shape == (len(data), kind.block_size // grid.size)
    codes = torch.randint(0, (15 if grid.top is None else grid.top) + 1, (len(data), kind.block_size), generator=generator)
    recoded = grid.recode(codes.to(torch.uint8))
    assert recoded.shape == data.shape
    assert torch.equal(ggml_dequantize(recoded, type_name), values(grid, codes))
    assert torch.equal(block_grid(recoded, type_name).scale, grid.scale)
