"""Checkpoints that other tools wrote (foreign/make_fixtures.py: GPTQModel 7.7.0, auto-round 0.16.1), loaded with ours."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from hubquant.formats import gptq
from hubquant.integrations.quantizer import PACKED_LINEARS

from .conftest import unpack
from .loadingresults import record

FOREIGN = Path(__file__).parent / "foreign"
FOLDERS = sorted(f.name for f in FOREIGN.iterdir() if (f / "expected.safetensors").exists())
LINEARS = {  # what a folder holds beside seven packed linears of the usual kind
    "gptqmodel-2bit-g64-asymmetric": {"GptqCarryLinear": 7},
    "gptqmodel-4bit-g128-asymmetric": {"GptqCarryLinear": 7},
    "gptqmodel-dynamic-head": {"GptqLinear": 7},  # lm_head is packed, v_proj is not
    "gptqmodel-moe": {"GptqLinear": 4 + 3 * 4},
    "auto-round-awq-moe": {"AwqLinear": 4 + 3 * 4},
    "gptqmodel-awq-gemv": {"AwqGemvLinear": 7},
    "gptqmodel-awq-gemv-fast": {"AwqGemvFastLinear": 7},
}

pytestmark = pytest.mark.usefixtures("our_loaders")


def load(name: str) -> nn.Module:
    model, info = AutoModelForCausalLM.from_pretrained(FOREIGN / name, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    loaded: nn.Module = model
    return loaded


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    result: Tensor = model(tokens).logits.float()
    return result


def check(name: str) -> float:
    """Largest difference from the tool's logits, by their standard deviation.

    It computed them in float16: no more than four times what that costs us is allowed, as root mean squares, since the largest of
    some thousand differences is another one on every processor.

    Twice for another order of the same roundings, twice because the tool rounds decoded weights to float16, too.
    """
    expected = load_file(FOREIGN / name / "expected.safetensors")
    tokens = expected["tokens"]
    model = load(name)
    found = logits(model, tokens)
    unpack(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    allowed = 4 * float((logits(model, tokens) - found).square().mean().sqrt())
    assert allowed < float(found.std()) / 10
    difference = found - expected["logits"]
    assert float(difference.square().mean().sqrt()) <= allowed
    return float(difference.abs().max()) / float(expected["logits"].std())


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_are_those_of_the_tool(name: str) -> None:
    difference = check(name)
    kinds = [type(m).__name__ for m in load(name).modules() if isinstance(m, PACKED_LINEARS)]
    usual = "AwqLinear" if "awq" in name else "GptqLinear"
    assert {k: kinds.count(k) for k in kinds} == LINEARS.get(name, {usual: 7})
    record(name, "logits", difference)


@pytest.mark.parametrize("name", [n for n in FOLDERS if LINEARS.get(n) == {"GptqCarryLinear": 7}])
def test_zeros_that_borrowed_from_their_neighbours_get_it_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQModel's version 1 of asymmetric zeros: taken as every other tool's, some weights would be wrong."""
    monkeypatch.setattr(gptq, "carries", lambda settings: False)
    with pytest.raises(AssertionError):
        check(name)


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_saved_is_what_was_loaded(name: str, tmp_path: Path) -> None:
    model = load(name)
    model.save_pretrained(tmp_path)
    before, after = load_file(FOREIGN / name / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    packed = [n for n in before if n.rpartition(".")[2] in ("qweight", "qzeros", "scales", "g_idx")]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype for n in packed)
    blocks = [json.loads((f / "config.json").read_text())["quantization_config"] for f in (FOREIGN / name, tmp_path)]
    assert blocks[0] == blocks[1]
    tokens = torch.arange(2, 14)[None]
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(again, tokens), logits(model, tokens))
    record(name, "saved", True)


@pytest.mark.parametrize("name", ["gptqmodel-moe", "auto-round-awq-moe"])
def test_experts_stay_packed_and_compile_whole(name: str) -> None:
    model = load(name)
    assert not any("experts" in n and p.numel() for n, p in model.named_parameters())
    tokens = torch.arange(2, 14)[None]
    eager = logits(model, tokens)
    compiled = logits(torch.compile(model, fullgraph=True, backend="aot_eager"), tokens)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5 * float(eager.abs().max()))
    record(name, "compiled", True)


@pytest.mark.parametrize("name", ["gptqmodel-moe", "gptqmodel-dynamic-head"])
def test_the_backbone_loads_alone(name: str) -> None:
    backbone = AutoModel.from_pretrained(FOREIGN / name, dtype=torch.float32)
    tokens = torch.arange(2, 14)[None]
    with torch.no_grad():
        assert torch.equal(backbone(tokens).last_hidden_state, load(name).model(tokens).last_hidden_state)


def test_auto_rounds_scales_are_signed() -> None:
    """Its symmetric grids have their odd code on the side of the largest weight; and its config names no version."""
    folder = FOREIGN / "auto-round-gptq"
    scales = [t for n, t in load_file(folder / "model.safetensors").items() if n.endswith("scales")]
    assert all(bool((t < 0).any()) for t in scales)
    assert "checkpoint_format" not in json.loads((folder / "config.json").read_text())["quantization_config"]
