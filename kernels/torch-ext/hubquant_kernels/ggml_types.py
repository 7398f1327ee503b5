"""The block types of ggml that can be written and read here: sizes as in ggml-common.h, enum values as in ggml.h."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GgmlType:
    """`block_size` weights take `type_size` bytes; `value` is the type's number in a GGUF file."""

    name: str
    value: int
    block_size: int
    type_size: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type_size / self.block_size


_TYPES = (
    GgmlType("F32", 0, 1, 4),
    GgmlType("F16", 1, 1, 2),
    GgmlType("BF16", 30, 1, 2),
    GgmlType("Q8_0", 8, 32, 34),
    GgmlType("Q4_0", 2, 32, 18),
    GgmlType("Q4_1", 3, 32, 20),
    GgmlType("Q5_0", 6, 32, 22),
    GgmlType("Q5_1", 7, 32, 24),
    GgmlType("IQ4_NL", 20, 32, 18),
    GgmlType("Q2_K", 10, 256, 84),
    GgmlType("Q3_K", 11, 256, 110),
    GgmlType("Q4_K", 12, 256, 144),
    GgmlType("Q5_K", 13, 256, 176),
    GgmlType("Q6_K", 14, 256, 210),
    GgmlType("IQ4_XS", 23, 256, 136),
    GgmlType("TQ1_0", 34, 256, 54),
    GgmlType("TQ2_0", 35, 256, 66),
    GgmlType("MXFP4", 39, 32, 17),
)

GGML_TYPES: dict[str, GgmlType] = {t.name: t for t in _TYPES}
