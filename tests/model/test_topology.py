from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from hubquant.errors import BadModel
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder, read_config
from hubquant.model.topology import LayerInput, find_inputs


def found(layer: nn.Module, hidden: Tensor, **call: Any) -> dict[tuple[str, ...], LayerInput]:
    return {i.linears: i for i in find_inputs(layer, hidden, call)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # that of a CPU, and of a GPU
def test_llama_shares_inputs_and_finds_what_absorbs(dtype: torch.dtype, bundled: Path, tokens: Tensor) -> None:
    decoder = Decoder(read_config(bundled), Checkpoint(bundled), dtype=dtype)
    hidden = decoder.embed(tokens)
    with decoder.layer(0) as layer:
        before = {n: p.clone() for n, p in layer.named_parameters()}
        inputs = found(layer, hidden[:1], **decoder.call(0))
        assert all(torch.equal(p, before[n]) for n, p in layer.named_parameters()), "probing changed the layer"
    attention = inputs[("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")].absorber
    output = inputs[("self_attn.o_proj",)].absorber
    mlp = inputs[("mlp.gate_proj", "mlp.up_proj")].absorber
    down = inputs[("mlp.down_proj",)].absorber
    assert len(inputs) == 4
    assert attention and attention.module == "input_layernorm"
    assert mlp and mlp.module == "post_attention_layernorm"
    assert down and down.module == "mlp.up_proj" and torch.equal(down.channels, torch.arange(768))
    # two key/value heads of 64, each read by two of the four query heads
    heads = torch.arange(128).view(2, 64)
    assert output and output.module == "self_attn.v_proj"
    assert torch.equal(output.channels, torch.cat([heads[0], heads[0], heads[1], heads[1]]))


_FALCON = {"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
_NEOX = {**_FALCON, "model_type": "gpt_neox", "intermediate_size": 96, "max_position_embeddings": 64}
_STARCODER2 = {**_NEOX, "model_type": "starcoder2", "num_key_value_heads": 2}
# config.json → the linears that read each input, and what absorbs a scale on it: LayerNorms with their biases, and values if
# they have a matrix of their own
OTHERS: list[tuple[dict[str, Any], dict[tuple[str, ...], str | None]]] = [
    (
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 4},
        {("attn.c_attn",): "ln_1", ("attn.c_proj",): None, ("mlp.c_fc",): "ln_2", ("mlp.c_proj",): None},
    ),
    (
        _NEOX,
        {
            ("attention.query_key_value",): "input_layernorm",
            ("attention.dense",): None,
            ("mlp.dense_h_to_4h",): "post_attention_layernorm",
            ("mlp.dense_4h_to_h",): None,
        },
    ),
    (
        _FALCON,
        {
            ("self_attention.query_key_value", "mlp.dense_h_to_4h"): "input_layernorm",
            ("self_attention.dense",): None,
            ("mlp.dense_4h_to_h",): None,
        },
    ),
    (
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        {
            ("self_attention.query_key_value",): "ln_attn",
            ("self_attention.dense",): None,
            ("mlp.dense_h_to_4h",): "ln_mlp",
            ("mlp.dense_4h_to_h",): None,
        },
    ),
    (
        _STARCODER2,
        {
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): "input_layernorm",
            ("self_attn.o_proj",): "self_attn.v_proj",
            ("mlp.c_fc",): "post_attention_layernorm",
            ("mlp.c_proj",): None,
        },
    ),
]


@pytest.mark.parametrize(("config", "absorbers"), OTHERS, ids=lambda c: c.get("model_type", ""))
def test_gpt2_and_what_came_from_it(
    config: dict[str, Any], absorbers: dict[tuple[str, ...], str | None], tokens: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = AutoConfig.for_model(**config, vocab_size=2048, bos_token_id=None, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms start at 1 and their biases at 0: halving both would prove nothing
            nn.init.normal_(parameter, 0.5, 0.3)
    model.save_pretrained(tmp_path)
    decoder = Decoder(read_config(tmp_path), Checkpoint(tmp_path))
    hidden = decoder.embed(tokens)
    with decoder.layer(0) as layer:
        inputs = found(layer, hidden[:1], **decoder.call(0))
    assert {linears: i.absorber.module if i.absorber else None for linears, i in inputs.items()} == absorbers


class OffsetNorm(nn.Module):
    """x · (1 + w): doubling w does not double the output, so it cannot absorb a scale as if it were w alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.weight)


class Block(nn.Module):
    def __init__(self, norm: nn.Module, second_reader: bool = False) -> None:
        super().__init__()
        self.norm, self.first, self.second, self.second_reader = norm, nn.Linear(8, 8), nn.Linear(8, 8), second_reader

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.norm(hidden)
        y = self.second(torch.tanh(self.first(x)))
        return hidden + y + (x if self.second_reader else 0)


@pytest.mark.parametrize(
    ("block", "absorber"),
    [
        (Block(nn.RMSNorm(8)), "norm"),
        (Block(nn.LayerNorm(8)), "norm"),
        (Block(OffsetNorm(8)), None),
        (Block(nn.RMSNorm(8), second_reader=True), None),
    ],
)
def test_a_norm_absorbs_only_if_it_is_proven(block: Block, absorber: str | None) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        inputs = found(block, torch.randn(1, 5, 8))
    first = inputs[("first",)].absorber
    assert (first.module if first else None) == absorber
    assert inputs[("second",)].absorber is None, "tanh lies between"


def test_fused_experts_are_declined() -> None:
    block = Block(nn.RMSNorm(8))
    block.experts = nn.Parameter(torch.zeros(2, 8, 8))
    with pytest.raises(BadModel, match="fused experts"):
        find_inputs(block, torch.randn(1, 5, 8), {})
