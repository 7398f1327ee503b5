"""What people do with a loaded model: adapters, compilation, device maps, dtypes, many-step generation."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hubquant_kernels.layers import AwqLinear, GptqLinear
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hubquant.errors import HubquantError
from hubquant.integrations.quantizer import PACKED_LINEARS

from .conftest import unpack
from .loadingresults import record

FOREIGN = Path(__file__).parent / "foreign"
FOLDERS = (
    "gptqmodel-4bit-g32",
    "gptqmodel-4bit-g32-desc-act",
    "gptqmodel-4bit-g128-asymmetric",
    "gptqmodel-awq",
    "auto-round-awq-moe",
)
TOKENS = torch.arange(2, 26).reshape(2, 12)
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0, "init_lora_weights": True}

pytestmark = pytest.mark.usefixtures("our_loaders")


def load(name: str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(FOREIGN / name, **({"dtype": torch.float32} | options))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    result: Tensor = model(TOKENS).logits.float()
    return result


@pytest.mark.parametrize("name", FOLDERS)
def test_an_adapter_is_trained_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = load(name)
    before = logits(model)
    adapted = get_peft_model(model, LoraConfig(**LORA))
    torch.testing.assert_close(logits(adapted), before)  # its second half starts at zero
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    losses = []
    for _ in range(3):
        loss = adapted(TOKENS, labels=TOKENS).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] > losses[1] > losses[2]
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load(name), tmp_path)
    torch.testing.assert_close(logits(again), logits(adapted))
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted), before)
    record(name, "adapter", True)


@pytest.mark.parametrize("name", ["gptqmodel-4bit-g32", "gptqmodel-awq"])
def test_gradients_are_those_of_dense_weights(name: str) -> None:
    model = load(name)
    linear = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        weight = linear(torch.eye(linear.in_features)).T
    x = torch.randn(5, linear.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    outer = torch.randn(5, linear.out_features, generator=torch.Generator().manual_seed(1))
    linear(x).backward(outer)
    torch.testing.assert_close(x.grad, outer @ weight, rtol=0, atol=1e-5 * float((outer @ weight).abs().max()))


@pytest.mark.parametrize("name", ["gptqmodel-4bit-g32", "gptqmodel-awq"])
def test_an_adapter_is_not_merged_but_taken_off(name: str) -> None:
    model = load(name)
    before = logits(model)
    adapted = get_peft_model(model, LoraConfig(**LORA))
    refused = "gptq quantized" if "awq" not in name else "cannot be merged into packed weights"
    with pytest.raises((ValueError, HubquantError), match=refused):
        adapted.merge_and_unload()
    torch.testing.assert_close(logits(adapted), before)
    assert not any("lora" in n for n, _ in adapted.unload().named_modules())


def test_an_adapter_through_transformers_own_interface() -> None:
    model = load("gptqmodel-4bit-g32")
    model.add_adapter(LoraConfig(**LORA))
    model(TOKENS, labels=TOKENS).loss.backward()
    assert all(float(p.grad.abs().max()) > 0 for n, p in model.named_parameters() if "lora_B" in n)


def test_peft_imported_first_knows_our_layers_too() -> None:
    code = f"""
import os
os.environ["HUBQUANT_BACKEND"] = "1"
from peft import LoraConfig, get_peft_model
import hubquant
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(FOREIGN / "gptqmodel-4bit-g32")!r})
print(type(get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).model.model.layers[0].self_attn.q_proj).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.strip() == "PackedLora", done.stderr


@pytest.mark.parametrize("name", ["gptqmodel-4bit-g32-desc-act", "gptqmodel-4bit-g128-asymmetric", "gptqmodel-awq"])
def test_the_graph_is_whole(name: str) -> None:
    model = load(name)
    eager = logits(model)
    compiled = logits(torch.compile(model, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-5 * float(eager.abs().max()))
    record(name, "compiled", True)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}])
@pytest.mark.parametrize("name", ["gptqmodel-dynamic-head", "auto-round-awq-moe"])
def test_device_maps(name: str, device_map: Any) -> None:
    assert torch.equal(logits(load(name, device_map=device_map)), logits(load(name)))
    record(name, "device_map", True)


def test_layers_on_disk(tmp_path: Path) -> None:
    device_map = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    model = load("gptqmodel-dynamic-head", device_map=device_map, offload_folder=tmp_path)
    torch.testing.assert_close(logits(model), logits(load("gptqmodel-dynamic-head")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, "auto"])
@pytest.mark.parametrize("name", FOLDERS)
def test_every_dtype_gives_nearly_the_same(name: str, dtype: Any) -> None:
    """Within twice what the decoded weights lose: in bfloat16 for both half types, which the CPU's product makes of float16."""
    exact = logits(load(name))
    model = load(name, dtype=dtype)
    stored = load_file(FOREIGN / name / "model.safetensors")
    for module_name, module in model.named_modules():
        if isinstance(module, PACKED_LINEARS):
            assert module.scales.dtype == stored[f"{module_name}.scales"].dtype
    rounded = load(name)
    unpack(rounded)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.to(torch.float32 if model.dtype == torch.float32 else torch.bfloat16)
    allowed = 2 * float((logits(rounded) - exact).abs().max()) + 1e-5 * float(exact.std())
    assert allowed < float(exact.std()) / 3
    assert float((logits(model) - exact).abs().max()) <= allowed


@pytest.mark.parametrize("name", ["gptqmodel-4bit-g32", "auto-round-awq-moe"])
@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"use_cache": False}])
def test_generates_step_by_step_what_whole_passes_give(name: str, options: dict[str, Any]) -> None:
    model = load(name)
    settings = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, "do_sample": False} | options
    out = model.generate(TOKENS, **settings)
    assert out.shape == (2, 18)
    if "num_beams" not in options:
        with torch.no_grad():
            assert torch.equal(model(out[:, :-1]).logits.argmax(-1)[:, 11:], out[:, 12:])
    record(name, "generated", True)


def test_a_caller_may_pass_a_config_of_his_own() -> None:
    """For gptqmodel's `backend` and the like; ours has nothing to choose."""
    from transformers import GPTQConfig

    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = load("gptqmodel-4bit-g32", quantization_config=GPTQConfig(bits=4, backend="marlin"))
    assert torch.equal(logits(model), logits(load("gptqmodel-4bit-g32")))
    assert isinstance(model.model.layers[0].mlp.up_proj, GptqLinear)
    assert not isinstance(model.model.layers[0].mlp.up_proj, AwqLinear)


def test_the_config_alone_is_saved_as_it_was(tmp_path: Path) -> None:
    load("gptqmodel-dynamic-head").config.save_pretrained(tmp_path)
    blocks = [
        json.loads((f / "config.json").read_text())["quantization_config"] for f in (tmp_path, FOREIGN / "gptqmodel-dynamic-head")
    ]
    assert blocks[0] == blocks[1]
