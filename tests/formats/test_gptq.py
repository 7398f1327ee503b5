"""GPTQ's tensors on disk: what is packed decodes to the very same weights, in version 1 and 2."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats import gptq
from hubquant.quantize.grid import Grid, QuantizedWeight
from hubquant.recipe import ROW

CONFIG: dict[str, Any] = {"bits": 4, "group_size": 32, "checkpoint_format": "gptq"}


def quantized(bits: int = 4, out: int = 16, width: int = 96, group_size: int = 32, symmetric: bool = False) -> QuantizedWeight:
    random = torch.Generator().manual_seed(bits)
    grid = Grid(bits, group_size, symmetric)
    groups = width // group_size
    zeros = torch.randint(0, 2**bits, (out, groups), generator=random)
    return QuantizedWeight(
        torch.randint(0, 2**bits, (out, width), generator=random).to(torch.uint8),
        (0.01 * torch.randn(out, groups, generator=random)).half(),
        (torch.full_like(zeros, grid.middle) if symmetric else zeros).to(torch.uint8),
        grid,
    )


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_what_is_packed_decodes_to_the_same_weights(bits: int, symmetric: bool, version: str) -> None:
    weight = quantized(bits, out=32, symmetric=symmetric)
    tensors, config = gptq.pack(weight, version), CONFIG | {"bits": bits, "checkpoint_format": version}
    gptq.check("x", tensors, config)
    assert torch.equal(gptq.dequantize(tensors, config), weight.dequantize())


def test_free_zeros_are_stored_as_they_are() -> None:
    """In version 1 a zero of 0 is 15, of which GPTQModel's addition of words carries into the next."""
    assert gptq.version_for([Grid(4, 128, True), Grid(8, 64, True)]) == "gptq"
    assert gptq.version_for([Grid(4, 128, True), Grid(8, 64, False)]) == "gptq_v2"


def test_names_shapes_and_types_are_those_of_the_format() -> None:
    tensors = gptq.pack(quantized())
    assert tuple(tensors) == gptq.SUFFIXES
    assert {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} == {
        "qweight": ((96 * 4 // 32, 16), torch.int32),
        "qzeros": ((3, 16 * 4 // 32), torch.int32),
        "scales": ((3, 16), torch.float16),
        "g_idx": ((96,), torch.int32),
    }
    assert all(t.is_contiguous() for t in tensors.values())
    assert tensors["g_idx"].tolist() == [0] * 32 + [1] * 32 + [2] * 32


def test_a_symmetric_weight_stores_seven_for_its_zeros() -> None:
    """As GPTQModel and auto-round do: the middle, 8, less one, eight times in a word."""
    assert set(gptq.pack(quantized(symmetric=True))["qzeros"].flatten().tolist()) == {0x77777777}


def test_version_2_stores_the_zeros_themselves() -> None:
    weight = quantized()
    tensors = gptq.pack(weight)
    one_each = int("1" * 8, 16)
    version_2 = dict(tensors)
    version_2["qzeros"] = _add_without_carry(tensors["qzeros"], one_each)
    config = CONFIG | {"checkpoint_format": "gptq_v2"}
    assert torch.equal(gptq.dequantize(version_2, config), weight.dequantize())
    assert not torch.equal(gptq.dequantize(tensors, config), weight.dequantize())


def _add_without_carry(words: Tensor, addend: int) -> Tensor:
    """Each 4-bit field plus its field of `addend`, modulo 16."""
    result = torch.zeros_like(words, dtype=torch.int64)
    for shift in range(0, 32, 4):
        result |= (((words.long() >> shift) + (addend >> shift)) & 15) << shift
    return torch.where(result >= 1 << 31, result - (1 << 32), result).to(torch.int32)


def test_the_config_block_is_what_other_loaders_ask_for() -> None:
    config = gptq.quantization_config(Grid(4, 128, True), {}, 0.05, "hubquant:1.2.3")
    assert config == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "lm_head": False,
        "damp_percent": 0.05,
        "true_sequential": False,
        "meta": {"quantizer": ["hubquant:1.2.3"]},
    }
    options: dict[str, Any] = {"version": "gptq_v2", "desc_act": True, "lm_head": True}
    row = gptq.quantization_config(Grid(8, ROW, False), {"-:x": {}}, 0.05, "hubquant:1.2.3", **options)
    changed: dict[str, Any] = {"bits": 8, "group_size": -1, "sym": False, "desc_act": True, "lm_head": True, "dynamic": {"-:x": {}}}
    changed["checkpoint_format"] = "gptq_v2"
    assert row == config | changed


def test_the_version_is_read_under_either_name() -> None:
    assert gptq.zero_offset({}) == gptq.zero_offset({"checkpoint_format": "gptq"}) == gptq.zero_offset({"format": "gptq"}) == 1
    assert gptq.zero_offset({"checkpoint_format": "gptq_v2"}) == gptq.zero_offset({"format": "gptq_v2"}) == 0
    with pytest.raises(BadModel, match=r"checkpoint_format is 'marlin'; known: gptq, gptq_v2"):
        gptq.zero_offset({"checkpoint_format": "marlin"})


@pytest.mark.parametrize("bits", [5, None, "4"])
def test_widths_that_are_not_read_are_named(bits: object) -> None:
    with pytest.raises(BadModel, match=rf"bits is {bits!r}; hubquant reads 2, 3, 4, 8 bits"):
        gptq.dequantize(gptq.pack(quantized()), CONFIG | {"bits": bits})


def damaged(suffix: str, tensor: Tensor) -> dict[str, Tensor]:
    return gptq.pack(quantized()) | {suffix: tensor}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (damaged("qweight", torch.zeros(11, 16, dtype=torch.int32)), r"tensor layer\.q\.qweight has shape \[11, 16\]"),
        (damaged("qweight", torch.zeros(12, 8, dtype=torch.int32)), r"tensor layer\.q\.qweight has shape \[12, 8\]"),
        (damaged("qzeros", torch.zeros(3, 3, dtype=torch.int32)), r"tensor layer\.q\.qzeros has shape \[3, 3\]"),
        (damaged("qzeros", torch.zeros(2, 2, dtype=torch.int32)), r"tensor layer\.q\.qzeros has shape \[2, 2\]"),
        (damaged("scales", torch.zeros(3, 12).half()), r"tensor layer\.q\.qweight has shape \[12, 16\], .* 12 outputs"),
        (damaged("g_idx", torch.zeros(88, dtype=torch.int32)), r"tensor layer\.q\.qweight .* 88 channels"),
        (damaged("g_idx", torch.full((96,), 3, dtype=torch.int32)), r"tensor layer\.q\.g_idx names groups 3 to 3; there are 3"),
        (damaged("g_idx", torch.arange(-1, 95, dtype=torch.int32).clamp_max(2)), r"tensor layer\.q\.g_idx names groups -1 to 2"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_named(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        gptq.check("layer.q", tensors, CONFIG)


def test_any_group_index_within_range_is_fine() -> None:
    tensors = copy.copy(gptq.pack(quantized()))
    tensors["g_idx"] = torch.randint(0, 3, (96,), dtype=torch.int32)
    gptq.check("layer.q", tensors, CONFIG)
