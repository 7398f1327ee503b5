"""Sizes before anything is made: what a variant of so many parameters will take on disk."""

from hubquant.recipe import Variant

SCALE_BITS = 16  # one fp16 scale per group
# Exact where one type fills the file (block sizes of ggml); the mixtures as llama.cpp states them for Llama-3.1-8B
# (tools/quantize/README.md). They keep a few tensors of a small model wider, so a small model comes out larger.
MIXTURE_BITS = {"Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K_M": 5.70, "Q4_K_M": 4.89}


def bits_per_weight(variant: Variant) -> float:
    """Of the quantized matrices, scales and zero points included. GPTQ and AWQ leave embeddings and head in 16 bit; they count
    as quantized here."""
    if variant.mixture:
        return MIXTURE_BITS[variant.mixture]
    return variant.bits + (SCALE_BITS + variant.bits) / variant.group_size  # a symmetric variant stores zero points too


def size_bytes(variant: Variant, parameters: int) -> int:
    """parameters × bits per weight / 8."""
    return round(parameters * bits_per_weight(variant) / 8)
