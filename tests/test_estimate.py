"""Estimated sizes rest on the formats' own block sizes."""

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hubquant.estimate import bits_per_weight, size_bytes
from hubquant.recipe import VARIANTS, Variant


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_an_estimate_near_its_nominal_width(name: str) -> None:
    variant = VARIANTS[name]
    assert variant.bits < bits_per_weight(variant) < variant.bits + 1


@pytest.mark.parametrize("mixture", ["Q8_0", "Q6_K"])
def test_one_type_files_weigh_what_ggml_s_blocks_weigh(mixture: str) -> None:
    weights, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[mixture]]
    found = bits_per_weight(next(variant for variant in VARIANTS.values() if variant.mixture == mixture))
    assert found == 8 * n_bytes / weights


def test_a_group_carries_a_scale_and_a_zero_point() -> None:
    variant = Variant(name="gptq-int4-g64", format="gptq", bits=4, group_size=64)
    assert bits_per_weight(variant) == 4 + 16 / 64 + 4 / 64


def test_a_size_is_a_whole_number_of_bytes() -> None:
    assert size_bytes(VARIANTS["gguf-q8_0"], 1_000_000_000) == 1_062_500_000
