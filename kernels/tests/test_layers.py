"""Packed linears: what their state dict holds, and that they compute what a dense linear with the decoded weight does."""

import pytest
import torch
from hubquant_kernels.int4_matmul import dequantize_awq, dequantize_gptq
from hubquant_kernels.layers import AwqLinear, GptqLinear
from torch import nn


def filled(layer: nn.Module) -> nn.Module:
    """The layer with every bit of its words random."""
    random = torch.Generator().manual_seed(0)
    for name, buffer in layer.named_buffers():
        if name in ("qweight", "qzeros"):
            buffer.copy_(torch.randint(-(2**31), 2**31, buffer.shape, generator=random))
        elif name in ("scales", "bias"):
            buffer.copy_(0.05 * torch.randn(buffer.shape, generator=random))
    return layer


def dense(layer: nn.Module) -> torch.Tensor:
    if isinstance(layer, GptqLinear):
        return dequantize_gptq(layer.qweight, layer.qzeros, layer.scales, layer.g_idx, layer.bits, layer.zero_offset)
    return dequantize_awq(layer.qweight, layer.qzeros, layer.scales)


LAYERS = {
    "gptq 4 bit": lambda bias: GptqLinear(64, 32, bits=4, group_size=16, zero_offset=1, bias=bias),
    "gptq 2 bit, version 2": lambda bias: GptqLinear(64, 32, bits=2, group_size=32, zero_offset=0, bias=bias),
    "gptq 8 bit, one group": lambda bias: GptqLinear(64, 32, bits=8, group_size=64, zero_offset=1, bias=bias),
    "gptq, last group in part": lambda bias: GptqLinear(80, 32, bits=4, group_size=32, zero_offset=1, bias=bias),
    "awq": lambda bias: AwqLinear(64, 32, group_size=16, bias=bias),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_computes_what_a_dense_linear_with_the_decoded_weight_computes(name: str, bias: bool) -> None:
    layer = filled(LAYERS[name](bias))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    expected = nn.functional.linear(x, dense(layer), layer.bias.float() if bias else None)
    assert torch.allclose(layer(x), expected, rtol=0, atol=82 * 2.0**-24 * float((x.abs() @ dense(layer).abs().T).max() + 1))
    assert layer(x.half()).dtype == torch.float16
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_the_bias_is_added() -> None:
    layer = filled(AwqLinear(16, 8, group_size=8, bias=True))
    with_bias = layer(torch.ones(1, 16))
    layer.bias.zero_()
    assert torch.allclose(with_bias - layer(torch.ones(1, 16)), filled(AwqLinear(16, 8, 8, bias=True)).bias.float(), atol=1e-6)


def test_buffers_have_the_names_shapes_and_types_of_the_files() -> None:
    gptq = GptqLinear(80, 32, bits=4, group_size=32, zero_offset=1, bias=False).state_dict()
    assert {n: (tuple(t.shape), t.dtype) for n, t in gptq.items()} == {
        "qweight": ((10, 32), torch.int32),
        "qzeros": ((3, 4), torch.int32),
        "scales": ((3, 32), torch.float16),
        "g_idx": ((80,), torch.int32),
    }
    assert gptq["g_idx"].tolist() == [0] * 32 + [1] * 32 + [2] * 16
    awq = AwqLinear(64, 32, group_size=16, bias=True).state_dict()
    assert {n: (tuple(t.shape), t.dtype) for n, t in awq.items()} == {
        "qweight": ((64, 4), torch.int32),
        "qzeros": ((4, 4), torch.int32),
        "scales": ((4, 32), torch.float16),
        "bias": ((32,), torch.float16),
    }


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_dict_makes_the_same_layer_again(name: str) -> None:
    layer = filled(LAYERS[name](True))
    again = LAYERS[name](True)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(2, layer.in_features)
    assert torch.equal(again(x), layer(x))


@pytest.mark.parametrize("name", ["gptq 4 bit", "awq"])
def test_torch_compile_takes_the_layer_as_one_graph(name: str) -> None:
    layer = filled(LAYERS[name](True))
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x), rtol=1e-6)
