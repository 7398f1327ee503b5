"""The operators as torch sees them: schema, fake tensors, no gradients, no trace on the thread settings."""

import pytest
import torch
from hubquant_kernels.ggml_dequantize import DECODERS, ggml_dequantize
from hubquant_kernels.ggml_quantize import ENCODERS, ggml_quantize
from hubquant_kernels.ggml_types import GGML_TYPES


def test_every_type_has_an_encoder_and_a_decoder() -> None:
    assert set(ENCODERS) == set(DECODERS) == set(GGML_TYPES)


@pytest.mark.parametrize("name", ["F16", "Q4_0", "Q6_K"])
@pytest.mark.parametrize("mode", ["reference", "best"])
def test_operators_pass_opcheck(name: str, mode: str) -> None:
    weight, importance = torch.randn(3, 256), torch.rand(256)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(ggml_quantize, (weight, importance, name, mode), test_utils=checks)
    torch.library.opcheck(ggml_quantize, (weight, None, name, mode), test_utils=checks)
    torch.library.opcheck(ggml_dequantize, (ggml_quantize(weight, None, name, mode), name), test_utils=checks)


def test_parameters_are_encoded_without_gradients() -> None:
    weight = torch.nn.Parameter(torch.randn(200, 256))
    with torch.no_grad():
        data = ggml_quantize(weight, None, "Q4_K", "best")
    assert not data.requires_grad
    assert torch.equal(data, ggml_quantize(weight.detach(), None, "Q4_K", "best"))
    assert torch.equal(data, ggml_quantize(weight, None, "Q4_K", "best"))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_strided_weights_are_read_as_they_are(name: str) -> None:

    weight = torch.randn(256, 64).T
    data = ggml_quantize(weight, None, name, "best")
    assert torch.equal(data, ggml_quantize(weight.contiguous(), None, name, "best"))
    relative = (ggml_dequantize(data, name) - weight).square().sum() / weight.square().sum()
    # a step of half the spread over 2^bits gives step²/12; 4 bits of a Gaussian block: about 0.6 %, 6 bits: 0.03 %
    assert relative < (0.0006 if name == "Q6_K" else 0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_best_on_a_gpu_has_about_the_error_of_the_cpu(name: str) -> None:
    weight, importance = torch.randn(64, 1024), torch.rand(1024)
    data = ggml_quantize(weight.cuda(), importance.cuda(), name, "best").cpu()
    here = ggml_quantize(weight, importance, name, "best")
    found, expected = ((ggml_dequantize(d, name) - weight).square().mul(importance).sum() for d in (data, here))
    assert found <= 1.01 * expected  # the search of the CPU also tries ggml's own; that is worth less than a percent
