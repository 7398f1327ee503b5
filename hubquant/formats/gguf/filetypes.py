"""llama.cpp's file types: the mixtures of tensor types that its tools know by name. A table without arithmetic."""

from dataclasses import dataclass

from hubquant.errors import UsageError


@dataclass(frozen=True)
class Mixture:
    """`file_type` is llama.cpp's number of it (llama_ftype), `base` the type of every matrix that no rule singles out,
    `bits_per_weight` what a whole file of Llama-3.1-8B takes (llama.cpp's tools/quantize)."""

    file_type: int
    base: str
    bits_per_weight: float


MIXTURES: dict[str, Mixture] = {
    "F32": Mixture(0, "F32", 32.0),
    "BF16": Mixture(32, "BF16", 16.0),
    "F16": Mixture(1, "F16", 16.0),
    "Q8_0": Mixture(7, "Q8_0", 8.5),
    "Q6_K": Mixture(18, "Q6_K", 6.5625),
    "Q5_1": Mixture(9, "Q5_1", 6.04),
    "Q5_K_M": Mixture(17, "Q5_K", 5.70),
    "Q5_K_S": Mixture(16, "Q5_K", 5.57),
    "Q5_0": Mixture(8, "Q5_0", 5.57),
    "Q4_1": Mixture(3, "Q4_1", 5.11),
    "Q4_K_M": Mixture(15, "Q4_K", 4.89),
    "Q4_K_S": Mixture(14, "Q4_K", 4.67),
    "Q4_0": Mixture(2, "Q4_0", 4.64),
    "IQ4_NL": Mixture(25, "IQ4_NL", 4.68),
    "IQ4_XS": Mixture(30, "IQ4_XS", 4.46),
    "MXFP4_MOE": Mixture(38, "MXFP4", 4.6),  # gpt-oss-20b; the matrices outside the experts are Q8_0
    "Q3_K_L": Mixture(13, "Q3_K", 4.30),
    "Q3_K_M": Mixture(12, "Q3_K", 4.00),
    "IQ3_M": Mixture(27, "IQ3_S", 3.76),
    "IQ3_S": Mixture(26, "IQ3_S", 3.66),
    "Q3_K_S": Mixture(11, "Q3_K", 3.64),
    "IQ3_XS": Mixture(22, "IQ3_S", 3.50),
    "IQ3_XXS": Mixture(23, "IQ3_XXS", 3.25),
    "Q2_K": Mixture(10, "Q2_K", 3.16),
    "Q2_K_S": Mixture(21, "Q2_K", 2.97),
    "IQ2_M": Mixture(29, "IQ2_S", 2.93),
    "IQ2_S": Mixture(28, "IQ2_XS", 2.74),
    "IQ2_XS": Mixture(20, "IQ2_XS", 2.59),
    "TQ2_0": Mixture(37, "TQ2_0", 2.52),  # computed from the shapes, as is the next
    "IQ2_XXS": Mixture(19, "IQ2_XXS", 2.38),
    "TQ1_0": Mixture(36, "TQ1_0", 2.19),
    "IQ1_M": Mixture(31, "IQ1_M", 2.15),
    "IQ1_S": Mixture(24, "IQ1_S", 2.00),
}


def mixture(name: str) -> Mixture:
    """Raises UsageError naming the known ones."""
    try:
        return MIXTURES[name]
    except KeyError:
        raise UsageError(f"unknown GGUF mixture {name!r}; known: {', '.join(MIXTURES)}") from None
