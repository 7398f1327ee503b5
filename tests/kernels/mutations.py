"""Seeded bugs: each is one line of a kernel changed into a plausible mistake, and the test that must fail for it.

`python tests/kernels/mutate.py [word]` applies them one at a time (all, or those whose file or test contains the word).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """In `file` (below hubquant_kernels) `old`, which stands there exactly once, becomes `new`; then `test` must fail.

    `test` is below tests/kernels/interpreted: "test_hessian.py::test_name" or "test_hessian.py::test_name[case]".
    """

    file: str
    old: str
    new: str
    test: str


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "gpu/int4_matmul.py",
        "p2 = ((words >> 8) & 0x000F000F)",
        "p2 = ((words >> 12) & 0x000F000F)",
        "test_int4_matmul.py::test_every_channel_and_column_is_in_its_place[gptq]",
    ),
    Mutation(
        "gpu/int4_matmul.py",
        "return tl.join(upper, lower)",
        "return tl.join(lower, upper)",
        "test_int4_matmul.py::test_every_channel_and_column_is_in_its_place[awq]",
    ),
    Mutation(
        "gpu/int4_matmul.py",
        "zero = ((zero >> (nibble * 4)) + ZERO_OFFSET) & 15",
        "zero = ((zero >> (nibble * 4)) & 15) + ZERO_OFFSET",
        "test_int4_matmul.py::test_version_1_stores_a_zero_less_one[1]",
    ),
    Mutation(
        "gpu/int4_matmul.py",
        "nibble = BLOCK, n_out // 8, n % 8 // 2 + n % 2 * 4",
        "nibble = BLOCK, n_out // 8, n % 8",
        "test_int4_matmul.py::test_every_channel_and_column_is_in_its_place[awq]",
    ),
    Mutation(
        "gpu/int4_matmul.py",
        "for split in range(splits):",
        "for split in range(1, splits):",
        "test_int4_matmul.py::test_products_are_those_with_the_dense_weight[1-256-256-2-dtype0-gptq]",
    ),
    Mutation(
        "gpu/int4_matmul.py",
        "group = block if ONE_BLOCK else block * BLOCK // group_size",
        "group = block",
        "test_int4_matmul.py::test_products_are_those_with_the_dense_weight[17-512-136-1-dtype0-awq]",
    ),
    Mutation(
        "gpu/int4_dequantize.py",
        "across = inside & (start > 29)",
        "across = inside & (start > 30)",
        "test_int4_matmul.py::test_gptqs_words_decode_bit_for_bit[0-3]",
    ),
)
