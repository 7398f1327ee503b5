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
    Mutation(
        "gpu/hessian.py",
        "short = at >= tiles - fold",
        "short = at > tiles - fold",
        "test_hessian.py::test_every_tile_of_the_triangle_is_computed_once[3]",
    ),
    Mutation(
        "gpu/hessian.py",
        "i = tl.where(short, fold - odd,",
        "i = tl.where(short, fold,",
        "test_hessian.py::test_every_tile_of_the_triangle_is_computed_once[5]",
    ),
    Mutation(
        "gpu/hessian.py",
        "total += tl.load(tile, mask=inside, other=0.0)",
        "total += 0.0",
        "test_hessian.py::test_adds_to_what_is_there_as_the_definition_does",
    ),
    Mutation(
        "gpu/hessian.py",
        "range(0, tokens, TOKENS)",
        "range(0, tokens - TOKENS + 1, TOKENS)",
        "test_hessian.py::test_tokens_that_do_not_fill_a_step_add_nothing_more[33]",
    ),
    Mutation(
        "gpu/hessian.py",
        "if WIDEN:",
        "if not WIDEN:",
        "test_hessian.py::test_a_wide_matrix_takes_large_tiles",
    ),
    Mutation(
        "gpu/grid.py",
        "tl.where(scale.to(tl.int32, bitcast=True) < 0, -magnitude, magnitude)",
        "magnitude",
        "test_grid.py::test_a_metric_of_nothing_leaves_the_full_range[4-True]",
    ),
    Mutation(
        "gpu/grid.py",
        "return (share * share)[None, :]",
        "return (row * row)[None, :]",
        "test_grid.py::test_a_metric_of_any_size_gives_the_same_scales",
    ),
    Mutation(
        "gpu/grid.py",
        "for step in range(1, _STEPS + 1):",
        "for step in range(1, _STEPS // 2):",
        "test_grid.py::test_no_scale_of_the_search_is_better_by_more_than_rounding_hides[20-32-2-True]",
    ),
    Mutation(
        "gpu/grid.py",
        "refit = _storable(tl.div_rn(tl.sum(counted * w, 1), norm))",
        "refit = _storable(-tl.div_rn(tl.sum(counted * w, 1), norm))",
        "test_grid.py::test_losses_are_the_definitions_on_average[False]",
    ),
    Mutation(
        "gpu/gptq_block.py",
        "mask=(columns > i) & (columns < n)",
        "mask=(columns >= i) & (columns < n - 1)",
        "test_gptq_block.py::test_every_code_is_the_nearest_to_what_compensation_left[17-33]",
    ),
    Mutation(
        "gpu/gptq_block.py",
        "line = factor + (matrix * n + i) * n",
        "line = factor + i * n",
        "test_gptq_block.py::test_a_batch_is_its_matrices_one_by_one",
    ),
    Mutation(
        "gpu/gptq_block.py",
        "error = tl.div_rn(now - level * step,",
        "error = tl.div_rn(now - code * step,",
        "test_gptq_block.py::test_every_code_is_the_nearest_to_what_compensation_left[16-16]",
    ),
    Mutation(
        "gpu/ggml_codebook.py",
        "value += tl.where(above, GAPS[i] * 1.0, 0.0)",
        "value += tl.where(above, GAPS[14 - i] * 1.0, 0.0)",
        "test_gptq_block.py::test_codes_of_the_codebook_are_the_definitions[17]",
    ),
    Mutation(
        "gpu/descend.py",
        "gain = tl.where(has_inverse, tl",
        "gain = tl.where(pivot >= 0, tl",
        "test_descend.py::test_a_column_without_a_diagonal_keeps_its_codes[0.0]",
    ),
    Mutation(
        "gpu/descend.py",
        "g -= ((new - old) * by)[:, None]",
        "g -= (new - old)[:, None]",
        "test_descend.py::test_codes_are_the_definitions[17-33]",
    ),
    Mutation(
        "gpu/descend.py",
        "mask=columns < n, other=0.0)",
        "mask=(columns > i) & (columns < n - 1), other=0.0)",
        "test_descend.py::test_codes_are_the_definitions[17-33]",
    ),
    Mutation(
        "gpu/ggml_layout.py",
        "((low >> 6) << 4))\n    m =",
        "((low >> 6) << 5))\n    m =",
        "test_ggml_dequantize.py::test_bits_are_the_definitions[Q4_K]",
    ),
    Mutation(
        "gpu/ggml_layout.py",
        "g // 8 * 4",
        "g % 8 * 4",
        "test_ggml_dequantize.py::test_bits_are_the_definitions[Q3_K]",
    ),
    Mutation(
        "gpu/ggml_layout.py",
        "128, 64, 4)",
        "128, 32, 4)",
        "test_ggml_dequantize.py::test_bits_are_the_definitions[Q6_K]",
    ),
    Mutation(
        "gpu/ggml_layout.py",
        "(codes - 16).to",
        "(codes - 15).to",
        "test_ggml_dequantize.py::test_bits_are_the_definitions[Q5_0]",
    ),
    Mutation(
        "gpu/ggml_matmul.py",
        "mask=(column < n_in)[None, :], other=0.0",
        "mask=(column < n_in)[None, :], other=1.0",
        "test_ggml_matmul.py::test_one_row[dtype0-Q8_0]",
    ),
    Mutation(
        "gpu/ggml_matmul.py",
        "tl.where(i < n_x, i, 0) // x_step",
        "tl.where(i < n_x, i, 0)",
        "test_ggml_matmul.py::test_experts[3]",
    ),
    Mutation(
        "gpu/kquant.py",
        "A=4, PLANES=2, B=1",
        "A=2, PLANES=2, B=2",
        "test_ggml_quantize.py::test_error_is_the_definitions[plain-Q4_K]",
    ),
    Mutation(
        "gpu/kquant.py",
        "store_half(halves, at + 82, dmin, known)",
        "store_half(halves, at + 82, -dmin, known)",
        "test_ggml_quantize.py::test_error_is_the_definitions[plain-Q2_K]",
    ),
    Mutation(
        "gpu/ggml_pack.py",
        "(sc & 15) | ((m & 15) << 4)",
        "(m & 15) | ((sc & 15) << 4)",
        "test_ggml_quantize.py::test_error_is_the_definitions[plain-Q5_K]",
    ),
    Mutation(
        "gpu/ggml_pack.py",
        "[S, 4, 4]) << (2 * tl.arange(0, 4))[None, :, None]",
        "[S, 4, 4]) << (2 * tl.arange(0, 4))[None, None, :]",
        "test_ggml_quantize.py::test_error_is_the_definitions[plain-Q3_K]",
    ),
    Mutation(
        "gpu/ggml_columns.py",
        "column % per_row",
        "column",
        "test_ggml_quantize.py::test_importance_is_that_of_the_column[Q4_0]",
    ),
    Mutation(
        "gpu/ggml_best_affine.py",
        "minimum = tl.where(better, -(start + origin), minimum)",
        "minimum = tl.where(better, -start, minimum)",
        "test_ggml_quantize.py::test_error_is_the_definitions[importance-Q4_1]",
    ),
    Mutation(
        "gpu/ggml_best_symmetric.py",
        "better = fit * lx > gain",
        "better = lx > gain",
        "test_ggml_quantize.py::test_error_is_the_definitions[plain-Q4_0]",
    ),
    Mutation(
        "gpu/legacy.py",
        "store_bit32(halves, at + (BYTES - 20), codes >> 4",
        "store_bit32(halves, at + (BYTES - 20), codes >> 3",
        "test_ggml_quantize.py::test_error_is_the_definitions[plain-Q5_1]",
    ),
    Mutation(
        "gpu/legacy.py",
        "known = block < n_blocks\n    x = load(x, block, known, 32)\n    w = ",
        "known = block < n_blocks + 1\n    x = load(x, block, known, 32)\n    w = ",
        "test_ggml_quantize.py::test_nothing_is_written_beyond_the_last_block[Q8_0]",
    ),
    Mutation(
        "gpu/divergence.py",
        "tl.where(fade_p > 0, cross * fade_p, 0.0)",
        "cross",
        "test_divergence.py::test_the_largest_logits_may_come_in_any_block",
    ),
    Mutation(
        "gpu/divergence.py",
        "s_p = s_p * fade_p + tl.sum(weight, 1)",
        "s_p = s_p + tl.sum(weight, 1)",
        "test_divergence.py::test_the_largest_logits_may_come_in_any_block",
    ),
    Mutation(
        "gpu/divergence.py",
        "tl.where(top_p > m_p, (start",
        "tl.where(top_p >= m_p, (start",
        "test_divergence.py::test_of_equally_likely_tokens_the_first_counts",
    ),
    Mutation(
        "gpu/divergence.py",
        "hit = columns[None, :] == targets[:, None]",
        "hit = columns[None, :] - start == targets[:, None]",
        "test_divergence.py::test_equals_float64_within_float32_rounding[0.01-0.0]",
    ),
    Mutation(
        "gpu/divergence.py",
        "tl.sum(tl.where(weight > 0, weight * (p - q), 0.0), 1)",
        "tl.sum(weight * (p - q), 1)",
        "test_divergence.py::test_tokens_that_are_ruled_out_add_nothing_or_make_it_infinite",
    ),
    Mutation(
        "gpu/divergence.py",
        "first = tl.program_id(1) * each * COLUMNS",
        "first = tl.program_id(1) * COLUMNS",
        "test_divergence.py::test_heads_give_what_their_logits_give[20-500-40-72-dtype0]",
    ),
    Mutation(
        "gpu/pack.py",
        "start = i * BITS - w * 32",
        "start = i * BITS - w * 31",
        "test_pack.py::test_words_are_those_of_the_definition[8-32-1-gptq-3]",
    ),
    Mutation(
        "gpu/pack.py",
        "place = column // 2 + column % 2 * 4",
        "place = column // 4 + column % 4 * 2",
        "test_pack.py::test_words_are_those_of_the_definition[8-32-1-awq-4]",
    ),
    Mutation(
        "gpu/pack.py",
        "(tl.div_rn(w, scale) + 12582912.0) - 12582912.0",
        "tl.floor(tl.div_rn(w, scale) + 0.5)",
        "test_pack.py::test_ties_go_to_the_even_code[gptq-4]",
    ),
    Mutation(
        "gpu/pack.py",
        "tl.minimum(tl.maximum(nearest + zero, 0.0), (1 << BITS) - 1.0)",
        "tl.maximum(nearest + zero, 0.0)",
        "test_pack.py::test_words_are_those_of_the_definition[40-160-5-gptq-4]",
    ),
    Mutation(
        "gpu/pack.py",
        "<< (place * 4)[None, None, :], axis=2)",
        "<< (j * 4)[None, None, :], axis=2)",
        "test_pack.py::test_words_of_the_other_layout[8-16]",
    ),
    Mutation(
        "gpu/ggml_words.py",
        "(k // 32 % 4 * 2)) & 0x03030303",
        "(k // 64 % 4 * 2)) & 0x03030303",
        "test_ggml_matmul.py::test_one_row[dtype0-Q6_K]",
    ),
    Mutation(
        "gpu/ggml_words.py",
        "(bits & 4) << 14",
        "(bits & 4) << 13",
        "test_ggml_matmul.py::test_one_row[dtype0-Q5_0]",
    ),
    Mutation(
        "gpu/ggml_words.py",
        "minimum += scale",
        "minimum -= scale",
        "test_ggml_matmul.py::test_one_row[dtype0-Q4_1]",
    ),
    Mutation(
        "gpu/ggml_matmul.py",
        "x = odd if plane % 2 else even",
        "x = even if plane % 2 else odd",
        "test_ggml_matmul.py::test_one_row[dtype0-Q4_K]",
    ),
    Mutation(
        "gpu/awq_search.py",
        "tl.where(start < first, 2.0, 1.0)",
        "tl.where(start <= first, 2.0, 1.0)",
        "test_awq_search.py::test_losses_are_quadratic_forms_of_the_error[65-64-32]",
    ),
    Mutation(
        "gpu/awq_search.py",
        "tl.div_rn(points, s) - w",
        "points - w",
        "test_awq_search.py::test_the_rounding_error_is_the_definitions_to_the_bit[70-96-32-4-True]",
    ),
    Mutation(
        "gpu/awq_search.py",
        "channels = tl.program_id(1) * group_size + columns",
        "channels = tl.program_id(1) * (group_size // 2) + columns",
        "test_awq_search.py::test_the_rounding_error_is_the_definitions_to_the_bit[40-96-48-2-True]",
    ),
    Mutation(
        "gpu/awq_search.py",
        "range(0, tl.minimum(first + TILE, n), DEPTH)",
        "range(0, tl.minimum(first, n), DEPTH)",
        "test_awq_search.py::test_losses_are_quadratic_forms_of_the_error[1-16-16]",
    ),
    Mutation(
        "gpu/ggml_words.py",
        "<< (23 - bits)",
        "<< (22 - bits)",
        "test_ggml_matmul.py::test_one_row[dtype0-Q4_K]",
    ),
)
