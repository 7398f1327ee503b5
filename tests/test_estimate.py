"""Estimated sizes rest on the formats' own block sizes."""

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hubquant.estimate import bits_per_weight, size_bytes, vocabulary_parameters
from hubquant.recipe import VARIANTS, Variant


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_an_estimate_near_its_nominal_width(name: str) -> None:
    variant = VARIANTS[name]
    assert variant.bits <= bits_per_weight(variant) < variant.bits + 1.31  # Q3_K_L: embeddings and head are wider


@pytest.mark.parametrize("mixture", ["Q8_0", "Q6_K"])
def test_one_type_files_weigh_what_ggml_s_blocks_weigh(mixture: str) -> None:
    weights, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[mixture]]
    found = bits_per_weight(next(variant for variant in VARIANTS.values() if variant.mixture == mixture))
    assert found == 8 * n_bytes / weights


def test_a_group_carries_a_scale_and_a_zero_point() -> None:
    variant = Variant(name="gptq-int4-g64", format="gptq", bits=4, group_size=64)
    assert bits_per_weight(variant) == 4 + 16 / 64 + 4 / 64


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({"vocab_size": 100, "hidden_size": 8, "tie_word_embeddings": True}, 800),
        ({"vocab_size": 100, "hidden_size": 8, "tie_word_embeddings": False}, 1600),
        ({"vocab_size": 100, "hidden_size": 8}, 1600),
        ({"tie_word_embeddings": True, "text_config": {"vocab_size": 100, "hidden_size": 8}}, 800),
        ({"vocab_size": "many", "hidden_size": 8}, 0),
        ({}, 0),
    ],
)
def test_the_vocabulary_s_share_is_read_from_the_config(config: dict[str, object], parameters: int) -> None:
    assert vocabulary_parameters(config) == parameters


def test_gptq_and_awq_leave_the_vocabulary_in_16_bit() -> None:
    """For the demo's model, whose published AWQ folder has 5.876 bits per weight, not the 4.156 of its matrices."""
    parameters, vocabulary = 3_672_320, 2048 * 256
    awq, gguf = VARIANTS["awq-int4-g128"], VARIANTS["gguf-q8_0"]
    assert 8 * size_bytes(awq, parameters, vocabulary) / parameters == pytest.approx(5.876, rel=0.01)
    assert size_bytes(gguf, parameters, vocabulary) == size_bytes(gguf, parameters)


def test_a_size_is_a_whole_number_of_bytes() -> None:
    assert size_bytes(VARIANTS["gguf-q8_0"], 1_000_000_000) == 1_062_500_000
