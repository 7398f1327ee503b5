"""Models whose layers return more than hidden states, are told more than positions, or cannot be run alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from hubquant.errors import BadModel
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder
from hubquant.model.relay import Relays

HEADS = {"n_embd": 32, "n_layer": 2, "n_head": 4}
# layers give a tuple with something after the hidden states, openai-gpt's a list; rembert's embeddings have another width
ODD: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gptj": {**HEADS, "rotary_dim": 4},
    "openai-gpt": HEADS,
    "rembert": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "input_embedding_size": 16,
        "output_embedding_size": 16, "is_decoder": True,
    },
}  # fmt: skip


def saved(model_type: str, changes: dict[str, Any], folder: Path) -> tuple[Decoder, nn.Module]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=64, **changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return Decoder(config, Checkpoint(folder)), model


@pytest.mark.parametrize("model_type", ODD)
def test_layer_by_layer_equals_the_whole(model_type: str, tmp_path: Path) -> None:
    decoder, model = saved(model_type, ODD[model_type], tmp_path)
    tokens = torch.randint(0, 64, (3, 16), generator=torch.Generator().manual_seed(1))
    hidden = decoder.embed(tokens)
    for index in range(len(decoder.layers)):
        with decoder.layer(index) as layer:
            decoder.run(index, layer, hidden)
    with torch.no_grad(), decoder.head():
        assert torch.equal(decoder.logits(hidden), model(tokens, use_cache=False).logits)


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("xlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 4}, "runs between the decoder layers"),
        (
            "zaya",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
             "num_experts": 2, "moe_intermediate_size": 32},
            "hand each other prev_router_hidden_states beside the hidden states",
        ),
        ("cpmant", {"hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 64, "num_hidden_layers": 2},
         r"hidden states are of shape \[1, 48, 32\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_layer_by_layer_is_declined(
    model_type: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    decoder, _ = saved(model_type, changes, tmp_path)
    with pytest.raises(BadModel, match=reason):
        decoder.embed(torch.arange(32).view(2, 16))


class Told(nn.Module):
    """A model that gives its layers something of the tokens, and runs one of them twice if asked."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self.order = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), order

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for index in self.order:
            hidden = self.layers[index](hidden, of_tokens=x.sum(-1), scale=(2, x.new_ones(1)))
        return hidden


def relays_of(model: Told) -> Relays:
    def run(index: int, hidden: Tensor, call: Any) -> Tensor:
        return hidden

    return Relays(model, "layers", model.layers, run)


def test_each_window_has_its_own_call_where_it_differs() -> None:
    model = Told(order=(0, 1))
    relays = relays_of(model)
    windows = [torch.full((1, 3, 4), float(v)) for v in (1, 2, 1)]
    for window in windows:
        with relays.noting():
            model(window)
    for index in (0, 1):
        assert [float(relays.call(index, w)["of_tokens"][0, 0]) for w in range(3)] == [4.0, 8.0, 4.0]
        assert relays.call(index, 2) is relays.call(index, 0)  # equal calls are kept once


@pytest.mark.parametrize(("order", "reason"), [((0, 0, 1), "runs layer 0 after layer 0"), ((0,), "runs 1 of its 2 layers")])
def test_layers_run_twice_or_left_out(order: tuple[int, ...], reason: str) -> None:
    model = Told(order)
    with pytest.raises(BadModel, match=reason), relays_of(model).noting():
        model(torch.ones(1, 3, 4))
    assert isinstance(model.layers[0], nn.Linear)  # the layers stand in their places again
