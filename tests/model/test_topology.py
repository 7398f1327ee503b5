from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hubquant.errors import BadModel
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder, read_config
from hubquant.model.topology import LayerInput, find_inputs


def found(layer: nn.Module, hidden: Tensor, **call: Any) -> dict[tuple[str, ...], LayerInput]:
    return {i.linears: i for i in find_inputs(layer, hidden, call)}


def test_llama_shares_inputs_and_finds_what_absorbs(bundled: Path, tokens: Tensor) -> None:
    decoder = Decoder(read_config(bundled), Checkpoint(bundled))
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
