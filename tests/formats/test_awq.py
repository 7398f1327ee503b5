"""AWQ's tensors on disk: what is packed decodes to the very same weights."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats import awq
from hubquant.quantize.grid import Grid, QuantizedWeight

CONFIG: dict[str, Any] = {"bits": 4, "group_size": 32, "version": "gemm"}


def quantized(out: int = 16, width: int = 96, group_size: int = 32) -> QuantizedWeight:
    random = torch.Generator().manual_seed(0)
    groups = width // group_size
    return QuantizedWeight(
        torch.randint(0, 16, (out, width), generator=random).to(torch.uint8),
        (0.01 * torch.rand(out, groups, generator=random) + 0.001).half(),
        torch.randint(0, 16, (out, groups), generator=random).to(torch.uint8),
        Grid(4, group_size, False),
    )


@pytest.mark.parametrize("group_size", [32, 96])
def test_what_is_packed_decodes_to_the_same_weights(group_size: int) -> None:
    weight = quantized(group_size=group_size)
    tensors = awq.pack(weight)
    awq.check("x", tensors, CONFIG | {"group_size": group_size})
    assert torch.equal(awq.dequantize(tensors, CONFIG), weight.dequantize())


def test_names_shapes_and_types_are_those_of_the_format() -> None:
    tensors = awq.pack(quantized())
    assert tuple(tensors) == awq.SUFFIXES
    assert {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} == {
        "qweight": ((96, 2), torch.int32),
        "qzeros": ((3, 2), torch.int32),
        "scales": ((3, 16), torch.float16),
    }
    assert all(t.is_contiguous() for t in tensors.values())


def test_zeros_are_stored_as_they_are() -> None:
    weight = quantized()
    first_word = int(awq.pack(weight)["qzeros"][1, 0])
    stored = [(first_word >> (4 * i)) & 15 for i in range(8)]
    assert stored == [int(weight.zeros[column, 1]) for column in (0, 2, 4, 6, 1, 3, 5, 7)]


def test_the_config_block_is_what_other_loaders_ask_for() -> None:
    assert awq.quantization_config(Grid(4, 128, False), ["model.layers.0.mlp.down_proj"]) == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "llm-awq"}, r"layout 'llm-awq'; hubquant reads 4 bits in layouts gemm, gemv, gemv_fast"),
        ({"version": "GEMM", "bits": 3}, r"AWQ with 3 bits"),
        ({"bits": None}, r"AWQ with None bits"),
    ],
)
def test_other_layouts_and_widths_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        awq.dequantize(awq.pack(quantized()), CONFIG | change)


def test_the_layout_has_two_names_and_any_case() -> None:
    weight = quantized()
    for config in ({"bits": 4}, {"bits": 4, "format": "gemm"}, {"bits": 4, "version": "GEMM"}):
        assert torch.equal(awq.dequantize(awq.pack(weight), config), weight.dequantize())


def damaged(suffix: str, tensor: Tensor) -> dict[str, Tensor]:
    return awq.pack(quantized()) | {suffix: tensor}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (damaged("qweight", torch.zeros(96, 3, dtype=torch.int32)), r"tensor layer\.q\.qweight has shape \[96, 3\]"),
        (damaged("qzeros", torch.zeros(2, 2, dtype=torch.int32)), r"tensor layer\.q\.qzeros has shape \[2, 2\]"),
        (damaged("scales", torch.zeros(3, 12).half()), r"tensor layer\.q\.qweight .* 12 outputs"),
        (damaged("scales", torch.zeros(2, 16).half()), r"tensor layer\.q\.scales has 2 groups of 32; .* 96 channels"),
        (damaged("qweight", torch.zeros(100, 2, dtype=torch.int32)), r"3 groups of 32; layer\.q\.qweight has 100 channels"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_named(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        awq.check("layer.q", tensors, CONFIG)


def test_one_group_for_all_channels() -> None:
    awq.check("layer.q", awq.pack(quantized(group_size=96)), CONFIG | {"group_size": -1})
