"""Packed linears: what their state dict holds, and that they compute what a dense linear with the decoded weight does."""

import pytest
import torch
from hubquant_kernels.int4_matmul import dequantize_awq, dequantize_gptq
from hubquant_kernels.layers import AwqLinear, GptqCarryLinear, GptqLinear
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
        return dequantize_gptq(
            layer.qweight, *layer._stored_zeros()[:1], layer.scales, layer.g_idx, layer.bits, layer._stored_zeros()[1]
        )
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


def act_order() -> GptqLinear:
    """Channels spread over groups of 32, as desc_act leaves them."""
    layer = filled(GptqLinear(128, 48, bits=4, group_size=32, zero_offset=1, bias=True))
    layer.g_idx.copy_((torch.arange(128) // 32)[torch.randperm(128, generator=torch.Generator().manual_seed(3))])
    return layer


def sorted_only() -> GptqLinear:
    """Groups of 16, which torch's product does not know: sorted by group, as on a GPU, and decoded as before."""
    layer = filled(GptqLinear(64, 32, bits=4, group_size=16, zero_offset=1, bias=False))
    layer.g_idx.copy_(layer.g_idx[torch.randperm(64, generator=torch.Generator().manual_seed(3))].clone())
    return layer


def uneven() -> GptqLinear:
    """Two groups of 33 and 31 channels: nothing but the definition can read them."""
    layer = filled(GptqLinear(64, 32, bits=4, group_size=32, zero_offset=1, bias=False))
    layer.g_idx[32] = 0
    return layer


PREPARABLE = {
    "gptq": lambda: filled(GptqLinear(256, 80, bits=4, group_size=64, zero_offset=1, bias=True)),
    "gptq, version 2, a group of all": lambda: filled(GptqLinear(192, 64, bits=4, group_size=192, zero_offset=0, bias=False)),
    "gptq as GPTQModel writes it": lambda: filled(GptqCarryLinear(128, 16, bits=4, group_size=128, zero_offset=1, bias=False)),
    "gptq, act order": act_order,
    "awq": lambda: filled(AwqLinear(256, 144, group_size=128, bias=True)),
}
KEPT = {
    "gptq, groups of two sizes": uneven,
    "gptq, act order, groups of 16": sorted_only,
    "gptq 3 bit": lambda: filled(GptqLinear(64, 32, bits=3, group_size=32, zero_offset=1, bias=False)),
    "awq, groups of 16": lambda: filled(AwqLinear(64, 32, group_size=16, bias=False)),
}


@pytest.mark.parametrize("name", PREPARABLE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_a_prepared_layer_computes_the_same_in_bfloat16(name: str, dtype: torch.dtype, rows: int) -> None:
    layer = PREPARABLE[name]()
    x = torch.randn(rows, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight = dense(layer)
    zeros = layer._zeros().float()
    spread = (8 - zeros).abs() * layer.scales.float().abs()  # torch adds (8 − zero) · scale, rounded, to (code − 8) · scale
    group = (
        layer.g_idx.long() if isinstance(layer, GptqLinear) else torch.arange(layer.in_features) // (len(weight.T) // len(zeros))
    )
    layer.prepare()
    assert layer.packed is not None
    # x, the weight's two terms and the result are rounded to bfloat16, 2^-9 each; sums are made in float32
    magnitude = x.abs().float() @ (weight.abs() + 2 * spread.T[:, group]).T + 1
    exact = nn.functional.linear(x.float(), weight, layer.bias.float() if layer.bias is not None else None)
    assert layer(x).dtype == dtype
    assert bool(((layer(x).float() - exact).abs() <= 4 * 2.0**-9 * magnitude).all())


@pytest.mark.parametrize("name", PREPARABLE | KEPT)
def test_float32_and_a_state_dict_know_nothing_of_it(name: str) -> None:
    """float32 is computed as before, but for the order of sums; every tensor of the file is written bit for bit."""
    layer = (PREPARABLE | KEPT)[name]()
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    before, files = layer(x), {n: t.clone() for n, t in layer.state_dict().items()}
    layer.prepare()
    assert torch.allclose(
        layer(x), before, rtol=0, atol=300 * 2.0**-24 * float((x.abs() @ dense_of(files, name).abs().T).max() + 1)
    )
    assert layer.state_dict().keys() == files.keys()
    assert all(torch.equal(tensor, files[n]) for n, tensor in layer.state_dict().items())
    layer.restore()
    assert torch.equal(layer(x), before)


def dense_of(files: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    layer = (PREPARABLE | KEPT)[name]()
    layer.load_state_dict(files)
    return dense(layer)


@pytest.mark.parametrize("name", KEPT)
def test_what_torchs_product_does_not_know_stays_as_it_is(name: str) -> None:
    layer = KEPT[name]()
    layer.prepare()
    assert layer.packed is None
    assert (layer.order is not None) == (name == "gptq, act order, groups of 16")


def test_a_prepared_layer_takes_no_second_copy_of_the_weight() -> None:
    layer = filled(AwqLinear(1024, 512, group_size=128, bias=False))
    layer.prepare()
    held = sum(b.numel() * b.element_size() for b in layer.buffers())
    assert held <= 1024 * 512 * (0.5 + 8 / 128)  # the codes; scale, zero and torch's pairs of each group


def test_a_prepared_layer_loads_converts_and_moves_as_any_other() -> None:
    layer, other = act_order(), PREPARABLE["gptq, act order"]()
    other.qweight.zero_()
    other.prepare()
    layer.prepare()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 128)
    assert torch.equal(other(x), act_order()(x))
    assert layer.to(torch.bfloat16).packed is not None
    assert layer.to("meta").packed is None


@pytest.mark.parametrize("name", ["gptq, act order", "awq"])
def test_gradients_reach_the_activations_of_a_prepared_layer(name: str) -> None:
    layer = PREPARABLE[name]()
    x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(1), requires_grad=True)
    layer(x).sum().backward()
    expected, x.grad = x.grad, None
    layer.prepare()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, expected, atol=1e-5)


def test_torch_compile_takes_a_prepared_layer_as_one_graph() -> None:
    layer = act_order()
    layer.prepare()
    x = torch.randn(2, 128).bfloat16()
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
