"""The product kernel against the exact product of x and the decoded weight."""

import pytest
import torch
from hubquant_kernels import gguf
from hubquant_kernels.ggml_dequantize import ggml_dequantize
from hubquant_kernels.ggml_quantize import ggml_quantize
from hubquant_kernels.ggml_types import GGML_TYPES
from hubquant_kernels.gpu import ggml_matmul as kernel
from hubquant_kernels.gpu.ggml_layout import TYPES
from torch import Tensor

# rounding of the output; the interpreter cuts bf16 off instead
OUTPUT = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}


def tensors(name: str, m: int, n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(n, k, generator=generator)
    return torch.randn(m, k, generator=generator).to(dtype), ggml_quantize(weight, None, name, "reference")


def assert_close(found: Tensor, x: Tensor, weight: Tensor) -> None:
    """k products x·(1 + code/2^bits) in float32, each sum rounded once, by a scale that makes them up to a dozen times the
    largest weight of the row (where a code's bits are 5 and the row lies on both sides of zero); rounded to the output's type."""
    exact = x.double() @ weight.double().T
    terms = x.double().abs() @ (weight.abs() + 12 * weight.abs().amax(1, keepdim=True)).double().T
    bound = (x.shape[-1] + 4) * 2.0**-24 * terms + OUTPUT[x.dtype] * exact.abs() + 2.0**-24
    assert bool(((found.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_row(name: str, dtype: torch.dtype) -> None:
    k = 3 * GGML_TYPES[name].block_size if GGML_TYPES[name].block_size == 256 else 544
    x, data = tensors(name, 1, 11, k, dtype)
    assert_close(kernel.ggml_matmul(x, data, name), x, ggml_dequantize(data, name))


@pytest.mark.parametrize("m", [2, 3, 5, 8, 9])
def test_more_rows(m: int) -> None:
    x, data = tensors("Q4_K", m, 9, 768, torch.float32)
    assert_close(kernel.ggml_matmul(x, data, "Q4_K"), x, ggml_dequantize(data, "Q4_K"))


def test_leading_dimensions_and_strides() -> None:
    x, data = tensors("Q8_0", 6, 4, 64, torch.float32)
    expected = ggml_dequantize(data, "Q8_0")
    assert_close(kernel.ggml_matmul(x.view(2, 3, 64), data, "Q8_0").view(6, 4), x, expected)
    assert_close(kernel.ggml_matmul(x[::2], data, "Q8_0"), x[::2], expected)
    assert kernel.ggml_matmul(x[:0], data, "Q8_0").shape == (0, 4)


def test_many_rows_are_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "DECODED_WEIGHTS", 3 * 256)
    x, data = tensors("Q6_K", 10, 8, 256, torch.float32)
    assert_close(kernel.ggml_matmul(x, data, "Q6_K"), x, ggml_dequantize(data, "Q6_K"))


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_experts(tokens: int) -> None:
    n_experts, k = 5, 512
    x, _ = tensors("Q4_K", tokens, 7, k, torch.float32)
    data = torch.stack([tensors("Q4_K", 1, 7 + e, k, torch.float32)[1][:7] for e in range(n_experts)])
    experts = torch.randint(0, n_experts, (tokens, 2), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    found = kernel.ggml_matmul_experts(x, data, experts, "Q4_K")
    assert found.shape == (tokens, 2, 7)
    for token in range(tokens):
        for slot in range(2):
            weight = ggml_dequantize(data[experts[token, slot]], "Q4_K")
            assert_close(found[token, slot][None], x[token][None], weight)


def test_the_names_of_transformers_agree_with_the_kernel() -> None:
    x, data = tensors("Q5_K", 2, 9, 256, torch.float32)
    value = GGML_TYPES["Q5_K"].value
    torch.testing.assert_close(gguf.mul_mat_vec(data, x, value, 9), kernel.ggml_matmul(x, data, "Q5_K"), rtol=1e-4, atol=1e-4)


def test_columns_that_do_not_fit_are_named() -> None:
    x, data = tensors("Q4_K", 1, 3, 512, torch.float32)
    with pytest.raises(ValueError, match="x has 256 columns and the Q4_K weight 512"):
        kernel.ggml_matmul(x[:, :256], data, "Q4_K")
    with pytest.raises(ValueError, match="rows of 280 bytes are no whole number of Q4_K blocks of 144"):
        kernel.ggml_matmul_experts(x, data[None, :, :280], torch.zeros(1, 1, dtype=torch.int32), "Q4_K")
