"""The products by their definition, and the names that transformers calls them by."""

import pytest
import torch
from hubquant_kernels import gguf
from hubquant_kernels.ggml_dequantize import ggml_dequantize
from hubquant_kernels.ggml_matmul import ggml_matmul, ggml_matmul_experts
from hubquant_kernels.ggml_quantize import ggml_quantize
from hubquant_kernels.ggml_types import GGML_TYPES
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Q4_K, Q6_K = GGML_TYPES["Q4_K"].value, GGML_TYPES["Q6_K"].value


def packed(name: str, *shape: int) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    data = ggml_quantize(weight.view(-1, shape[-1]), None, name, "reference")
    return data.view(*shape[:-1], -1).to(DEVICE)


@pytest.mark.parametrize("m", [1, 8, 20])
def test_product_with_the_decoded_weight(m: int) -> None:
    x, data = torch.randn(m, 512, device=DEVICE), packed("Q4_K", 24, 512)
    expected = x.double() @ ggml_dequantize(data, "Q4_K").double().T
    # sums of 512 products in float32, of magnitude about √512: off by far less than 512·2⁻²⁴·√512
    torch.testing.assert_close(ggml_matmul(x, data, "Q4_K").double(), expected, rtol=0, atol=7e-4)
    assert ggml_matmul(x.half(), data, "Q4_K").dtype == torch.float16


def test_experts_are_their_own_products() -> None:
    x, data = torch.randn(6, 256, device=DEVICE), packed("Q8_0", 3, 10, 256)
    experts = torch.tensor([[0, 2], [2, 1], [1, 0], [2, 2], [0, 1], [1, 2]], device=DEVICE)
    found = ggml_matmul_experts(x, data, experts, "Q8_0")
    for token, row in enumerate(experts.tolist()):
        for slot, expert in enumerate(row):
            expected = ggml_matmul(x[token], data[expert], "Q8_0")
            torch.testing.assert_close(found[token, slot], expected, rtol=0, atol=5e-4)


def test_operators_pass_opcheck() -> None:
    checks = ("test_schema", "test_faketensor")
    x, data, experts = torch.randn(2, 3, 256), packed("Q4_0", 4, 5, 256).cpu(), torch.tensor([[0, 3], [1, 1]])
    torch.library.opcheck(ggml_matmul, (x, data[0], "Q4_0"), test_utils=checks)
    torch.library.opcheck(ggml_matmul_experts, (x[:, 0], data, experts, "Q4_0"), test_utils=checks)
    torch.library.opcheck(ggml_dequantize, (data[0], "Q4_0", torch.bfloat16), test_utils=checks)


def test_the_names_of_transformers() -> None:
    data, x = packed("Q4_K", 12, 512), torch.randn(3, 512, device=DEVICE)
    dense = gguf.dequantize(data, Q4_K, 12, 512, torch.float32)
    assert torch.equal(dense, ggml_dequantize(data, "Q4_K"))
    assert torch.equal(gguf.dequantize(data, Q4_K, 12, 512, torch.float16), dense.half())
    assert torch.equal(gguf.get_rows(data, torch.tensor([3, 0, 3], device=DEVICE), Q4_K, 512, torch.float32), dense[[3, 0, 3]])
    torch.testing.assert_close(gguf.mul_mat_vec(data, x, Q4_K, 12), x @ dense.T, rtol=0, atol=7e-4)
    experts, ids = packed("Q6_K", 2, 12, 512), torch.tensor([[0], [1], [1]], dtype=torch.int32, device=DEVICE)
    found = gguf.mul_mat_id(experts, x, ids, Q6_K, 12)
    assert found.shape == (3, 1, 12)
    torch.testing.assert_close(found[1], gguf.mul_mat_vec(experts[1], x[1:2], Q6_K, 12), rtol=0, atol=7e-4)


def test_every_block_type_is_offered_and_others_are_named() -> None:
    assert {k.value for k in GGML_TYPES.values() if k.block_size > 1} == gguf.GEMV_TYPES
    with pytest.raises(ValueError, match=r"ggml type 99; known: .*12 \(Q4_K\)"):
        gguf.dequantize(torch.zeros(1, 144, dtype=torch.uint8), 99, 1, 256, torch.float32)


def test_columns_that_do_not_fit_are_named() -> None:
    data = packed("Q4_K", 2, 512)
    with pytest.raises(ValueError, match="x has 256 columns and the Q4_K weight 512"):
        ggml_matmul(torch.zeros(1, 256, device=DEVICE), data, "Q4_K")
    with pytest.raises(ValueError, match="rows of 280 bytes are no whole number of Q4_K blocks of 144"):
        ggml_matmul_experts(torch.zeros(1, 512, device=DEVICE), data[None, :, :280], torch.zeros(1, 1, dtype=torch.int32), "Q4_K")
