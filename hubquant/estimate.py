"""Sizes before anything is made: what a variant of so many parameters will take on disk."""

from collections.abc import Mapping
from typing import Any

from hubquant.formats.gguf.filetypes import mixture
from hubquant.recipe import ROW, Variant

SCALE_BITS = 16  # one fp16 scale per group
KEPT_BITS = 16


def bits_per_weight(variant: Variant) -> float:
    """Of what the variant quantizes, scales and zero points included; not for a budget of bytes. Mixtures keep a few tensors of a
    small model wider than those of the 8 B model their figures are from, so a small model comes out larger."""
    if variant.bits_per_weight:
        return variant.bits_per_weight
    if variant.mixture:
        return mixture(variant.mixture).bits_per_weight
    if variant.group_size == ROW:
        return variant.bits  # one scale to thousands of weights
    return variant.bits + (SCALE_BITS + variant.bits) / variant.group_size  # a symmetric variant stores zero points too


def vocabulary_parameters(config: Mapping[str, Any]) -> int:
    """Of embeddings and head, from config.json; 0 where it does not tell. Without a word on it the head counts as untied, as in
    most Llama-like families."""
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    rows, columns = text.get("vocab_size"), text.get("hidden_size")
    if not isinstance(rows, int) or not isinstance(columns, int):
        return 0
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))
    return rows * columns * (1 if tied else 2)


def size_bytes(variant: Variant, parameters: int, vocabulary: int = 0) -> int:
    """parameters × bits per weight / 8. GGUF quantizes embeddings and head (`vocabulary` parameters); GPTQ and AWQ leave them in
    16 bit, but for a head that is asked for."""
    if variant.size_bytes:
        return variant.size_bytes
    kept = 0 if variant.format == "gguf" else min(vocabulary // 2 if variant.head else vocabulary, parameters)
    return round(((parameters - kept) * bits_per_weight(variant) + kept * KEPT_BITS) / 8)
