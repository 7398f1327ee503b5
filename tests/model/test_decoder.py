import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from hubquant.errors import BadModel
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder, read_config

Change = Callable[[Callable[[dict[str, Tensor]], None]], Path]


def run(folder: Path, tokens: Tensor) -> Tensor:
    """Logits, layer by layer."""
    decoder = Decoder(read_config(folder), Checkpoint(folder))
    hidden = decoder.embed(tokens)
    for index in range(len(decoder.layers)):
        with decoder.layer(index) as layer:
            hidden = decoder.run(index, layer, hidden)
    with decoder.head():
        logits = decoder.logits(hidden)
    assert all(p.is_meta for p in decoder.model.parameters()), "a weight stayed in memory"
    return logits


def test_layer_by_layer_equals_the_whole_model(bundled: Path, tokens: Tensor) -> None:
    whole = AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(run(bundled, tokens), whole(tokens).logits)


def test_untied_embeddings_and_norms_of_queries_and_keys(tmp_path: Path, tokens: Tensor) -> None:
    config = Qwen3Config(
        vocab_size=2048, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(run(tmp_path, tokens), model(tokens).logits, rtol=0, atol=1e-5)


def test_shapes_leave_out_tied_copies(bundled: Path) -> None:
    decoder = Decoder(read_config(bundled), Checkpoint(bundled))
    assert set(decoder.shapes()) == set(Checkpoint(bundled).names())
    assert decoder.outside() == ["model.embed_tokens.weight", "model.norm.weight"]


def test_a_token_beyond_the_vocabulary(bundled: Path) -> None:
    decoder = Decoder(read_config(bundled), Checkpoint(bundled))
    with pytest.raises(BadModel, match="token id 2048 is beyond the vocabulary of 2048"):
        decoder.embed(torch.full((1, 8), 2048))


def test_a_missing_tensor_is_named(changed: Change) -> None:
    folder = changed(lambda tensors: tensors.__delitem__("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(BadModel, match=r"model\.layers\.2\.mlp\.up_proj\.weight is missing"):
        Decoder(read_config(folder), Checkpoint(folder))


def test_a_wrong_shape_is_named_with_both_shapes(changed: Change) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:100]

    folder = changed(cut)
    with pytest.raises(BadModel, match=r"model\.norm\.weight has shape \[100\]; config\.json asks for \[256\]"):
        Decoder(read_config(folder), Checkpoint(folder))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "no-such-type"}, "cannot be used"),
        ({"quantization_config": {"quant_method": "awq"}}, "itself quantized"),
    ],
)
def test_configs_that_are_declined(copy: Path, change: dict[str, object], sentence: str) -> None:
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match=sentence):
        read_config(copy)


def test_a_config_that_is_not_json(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(BadModel, match=r"config\.json cannot be used"):
        read_config(copy)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"no config\.json"):
        read_config(tmp_path)


def test_an_encoder_is_no_causal_model(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(BadModel, match="not a causal language model"):
        Decoder(read_config(copy), Checkpoint(copy))
