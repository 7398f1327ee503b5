"""Weights as sums of scales times parts: against the decoder of the package gguf, for every type that is said to be such a sum."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from hubquant.quantize.ggml import GGML_TYPES, encode
from hubquant.quantize.scales import SCALES, part_bytes, parts_of, scales_of, smallest, with_scales

EPSILON = 2.0**-23


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(6, 512, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.03


def package(data: torch.Tensor, name: str) -> torch.Tensor:
    return torch.from_numpy(dequantize(np.ascontiguousarray(data.numpy()), gguf.GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", SCALES)
def test_weights_are_scales_times_parts(name: str, weight: torch.Tensor) -> None:
    data = encode(weight, name, torch.linspace(0.5, 2, 512))
    scales, parts = scales_of(data, name), parts_of(data, name)
    terms = scales.repeat_interleave(GGML_TYPES[name].block_size, -1) * parts
    # each of up to four products and the sum is rounded once, in another order
    tolerance = 5 * EPSILON * terms.abs().sum(0)
    assert bool(((terms.sum(0) - package(data, name)).abs() <= tolerance).all())


@pytest.mark.parametrize("name", SCALES)
def test_only_scales_change(name: str, weight: torch.Tensor) -> None:
    data = encode(weight, name, torch.ones(512))
    scales = scales_of(data, name)
    assert torch.equal(with_scales(data, name, scales), data)
    other = with_scales(data, name, scales * 2)
    changed = (other != data).view(6, -1, GGML_TYPES[name].type_size).any(0).any(0).nonzero().flatten().tolist()
    assert changed and set(changed) <= {byte for at in SCALES[name] for byte in (at, at + 1)}
    assert torch.equal(package(other, name), 2 * package(data, name))


@pytest.mark.parametrize("name", SCALES)
def test_parts_take_what_is_said(name: str, weight: torch.Tensor) -> None:
    parts = parts_of(encode(weight, name, torch.ones(512)), name)
    found = smallest(parts)
    assert torch.equal(found.float(), parts)
    assert found.nbytes == part_bytes(name) * weight.numel()
