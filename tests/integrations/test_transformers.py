"""from_pretrained with our loaders: the same numbers as dense weights, the same files when saved, one clear error otherwise."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hubquant_kernels.layers import AwqLinear, GptqLinear
from hubquant_kernels.pack import pack_words, unpack_words
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.quantizers import auto

import hubquant
from hubquant.formats.packedsource import PackedSource
from hubquant.integrations.transformers import AwqLoader, GptqLoader, install

from .conftest import dense
from .loadingresults import record

METHODS = {"gptq": GptqLinear, "awq": AwqLinear}
Q_PROJ = "model.layers.1.self_attn.q_proj"
Spoil = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("our_loaders")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 2048, (2, 24), generator=torch.Generator().manual_seed(0))


def load(folder: Path, **options: Any) -> nn.Module:
    """The model in float32, and nothing missing or left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    loaded: nn.Module = model
    return loaded


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    result: Tensor = model(tokens).logits
    return result


def check_equal_to_dense(model: nn.Module, folder: Path, tokens: Tensor, dtype: torch.dtype) -> float:
    """No farther from the decoded weights in float64 than twice what they are themselves in `dtype`.

    Another order of the same operations errs as much as dense linears do, perhaps in the other direction.
    """
    exact = logits(dense(folder, torch.float64), tokens)
    tolerance = 2 * float((logits(dense(folder, dtype), tokens).double() - exact).abs().max())
    assert 0 < tolerance < float(exact.std()) / 10
    difference = float((logits(model, tokens).double() - exact).abs().max())
    assert difference <= tolerance
    return difference / float(exact.std())


def run(code: str) -> str:
    """A program in an interpreter of its own, where nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_hubquant_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "gradio", "numpy", "huggingface_hub")
    assert run(f"import sys, hubquant; print([m for m in {heavy} if m in sys.modules])") == "[]"


@pytest.mark.parametrize(
    "imports", ["import hubquant, transformers.modeling_utils", "import transformers.modeling_utils, hubquant"]
)
def test_the_order_of_imports_does_not_matter(imports: str) -> None:
    code = f"""
import os
os.environ["HUBQUANT_BACKEND"] = "1"
{imports.format("transformers.modeling_utils")}
from transformers.quantizers import auto
ours = [auto.AUTO_QUANTIZER_MAPPING[m].__module__ for m in ("gptq", "awq")]
hubquant.restore()
print(*ours, *[auto.AUTO_QUANTIZER_MAPPING[m].__module__ for m in ("gptq", "awq")])
"""
    ours = "hubquant.integrations.quantizer"
    assert run(code).split() == [ours, ours, "transformers.quantizers.quantizer_gptq", "transformers.quantizers.quantizer_awq"]


def test_our_own_module_may_come_first() -> None:
    """It imports transformers, whose import calls for it."""
    code = """
import os
os.environ["HUBQUANT_BACKEND"] = "1"
import hubquant.integrations.transformers
from transformers.quantizers import auto
print(auto.AUTO_QUANTIZER_MAPPING["gptq"].__name__)
hubquant.restore()
print(auto.AUTO_QUANTIZER_MAPPING["gptq"].__name__)
"""
    assert run(code).split() == ["GptqLoader", "GptqHfQuantizer"]


def test_restore_before_transformers_is_imported_holds_too() -> None:
    code = """
import hubquant
hubquant.restore()
import transformers.modeling_utils
from transformers.quantizers import auto
print(auto.AUTO_QUANTIZER_MAPPING["gptq"].__name__)
"""
    assert run(code) == "GptqHfQuantizer"


def loaders() -> list[str]:
    methods = ("gptq", "awq", "auto-round")
    tables = (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING)
    return [f"{t[m].__module__.partition('.')[0]}.{t[m].__name__}" for t in tables for m in methods]


def test_restore_and_install_undo_each_other() -> None:
    configs = ["GPTQConfig", "AwqConfig", "AutoRoundConfig"]
    ours = [f"hubquant.{n}" for n in ("GptqLoader", "AwqLoader", "auto_round_loader", *configs)]
    stock = [f"transformers.{n}" for n in ("GptqHfQuantizer", "AwqQuantizer", "AutoRoundQuantizer", *configs)]
    assert loaders() == ours
    install()
    hubquant.restore()
    assert loaders() == stock
    hubquant.restore()
    assert loaders() == stock
    install()
    assert loaders() == ours


@pytest.mark.parametrize(("backend", "ours"), [("", False), ("0", False), ("1", True)])
def test_where_gptqmodel_is_installed_we_step_aside_unless_told_not_to(
    backend: str, ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gptqmodel").mkdir()
    (tmp_path / "gptqmodel" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    hubquant.restore()
    monkeypatch.setenv("HUBQUANT_BACKEND", backend)
    install()
    assert (auto.AUTO_QUANTIZER_MAPPING["gptq"] is GptqLoader) == ours
    assert (auto.AUTO_QUANTIZER_MAPPING["awq"] is AwqLoader) == ours


@pytest.mark.parametrize("method", METHODS)
def test_a_real_model_gives_the_logits_of_its_decoded_weights(quantized_demo: Path, tokens: Tensor, method: str) -> None:
    folder = quantized_demo / f"{method}-int4-g128"
    model = load(folder)
    packed = [m for m in model.modules() if isinstance(m, METHODS[method])]
    assert len(packed) == 4 * 7
    assert [n for n, m in model.named_modules() if isinstance(m, nn.Linear)] == ["lm_head"]
    record(f"hubquant-{method}", "logits", check_equal_to_dense(model, folder, tokens, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_runs_with_the_same_scales(odd: Path, tokens: Tensor, method: str, dtype: torch.dtype) -> None:
    """Scales stay float16: bfloat16 would lose three of their bits. Few rows are multiplied in bfloat16 on a CPU, float16's too."""
    folder = odd / f"{method}-int4-g128"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert model.get_submodule(Q_PROJ).scales.dtype == torch.float16
    assert model.model.embed_tokens.weight.dtype == dtype
    check_equal_to_dense(model, folder, tokens, torch.bfloat16)


@pytest.mark.parametrize("method", METHODS)
def test_biases_and_linears_in_16_bit(odd: Path, tokens: Tensor, method: str) -> None:
    folder = odd / f"{method}-int4-g128"
    model = load(folder)
    layer = model.get_submodule("model.layers.0")
    assert type(layer.mlp.down_proj) is nn.Linear
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"):
        linear = layer.get_submodule(name)
        assert isinstance(linear, METHODS[method])
        assert float(linear.bias.abs().max()) > 0.1
    check_equal_to_dense(model, folder, tokens, torch.float32)
    with torch.no_grad():
        layer.self_attn.q_proj.bias.zero_()
    with pytest.raises(AssertionError):
        check_equal_to_dense(model, folder, tokens, torch.float32)


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
@pytest.mark.parametrize("method", METHODS)
def test_save_pretrained_writes_the_same_tensors_and_settings(
    odd: Path, tokens: Tensor, tmp_path: Path, method: str, max_shard_size: str
) -> None:
    folder = odd / f"{method}-int4-g128"
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again", max_shard_size=max_shard_size)
    files = list((tmp_path / "again").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_size == "100KB")
    before = load_file(folder / "model.safetensors")
    after = {n: t for f in files for n, t in load_file(f).items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype for n in before)
    block = json.loads((folder / "config.json").read_text())["quantization_config"]
    saved = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert {name: saved[name] for name in block} == block  # those that transformers does not know, too
    assert torch.equal(logits(load(tmp_path / "again"), tokens), logits(load(folder), tokens))
    record(f"hubquant-{method}", "saved", True)


@pytest.mark.parametrize("method", METHODS)
def test_generates_what_the_decoded_weights_generate(quantized_demo: Path, tokens: Tensor, method: str) -> None:
    folder = quantized_demo / f"{method}-int4-g128"
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    generated = load(folder).generate(tokens, **options)
    assert generated.shape == (2, 36)
    assert torch.equal(generated, dense(folder, torch.float32).generate(tokens, **options))
    record(f"hubquant-{method}", "generated", True)


def test_the_backbone_loads_alone(odd: Path, tokens: Tensor) -> None:
    """Its modules have no prefix, their names in the files have one."""
    folder = odd / "gptq-int4-g128"
    backbone = AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(backbone.layers[0].self_attn.q_proj, GptqLinear)
    with torch.no_grad():
        found, expected = (b(tokens).last_hidden_state for b in (backbone, load(folder).model))
    assert torch.equal(found, expected)


def test_version_2_of_gptq(spoil: Spoil, odd: Path, tokens: Tensor) -> None:
    stored = load_file(odd / "gptq-int4-g128" / "model.safetensors")
    version_2 = {n: pack_words((unpack_words(t, 4) + 1) % 16, 4) for n, t in stored.items() if n.endswith(".qzeros")}
    model = load(spoil("gptq", version_2, checkpoint_format="gptq_v2"))
    assert torch.equal(logits(model, tokens), logits(load(odd / "gptq-int4-g128"), tokens))


def test_channels_of_gptq_in_any_group(spoil: Spoil, tokens: Tensor) -> None:
    """desc_act: groups interleaved in two of another tool's size."""
    groups = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    random = torch.Generator().manual_seed(2)
    rows = {
        f"{Q_PROJ}.qzeros": torch.randint(-(2**31), 2**31, (2, 8), generator=random).to(torch.int32),
        f"{Q_PROJ}.scales": (0.02 * torch.rand(2, 64, generator=random)).half(),
        f"{Q_PROJ}.g_idx": groups,
    }
    others = {}
    for name, tensor in load_file(spoil("gptq") / "model.safetensors").items():
        if not name.startswith(Q_PROJ) and name.endswith((".qzeros", ".scales")):
            others[name] = tensor.repeat(2, 1)  # the second half of groups of 32 is like the first
        elif not name.startswith(Q_PROJ) and name.endswith(".g_idx"):
            others[name] = (torch.arange(64) // 32).to(torch.int32)
    folder = spoil("gptq", rows | others, group_size=32, desc_act=True)
    check_equal_to_dense(load(folder), folder, tokens, torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_one_group_for_all_channels(spoil: Spoil, odd: Path, tokens: Tensor, method: str) -> None:
    """-1 is how other tools write it; here one group of 64 is all channels."""
    assert torch.equal(logits(load(spoil(method, group_size=-1)), tokens), logits(load(odd / f"{method}-int4-g128"), tokens))


def test_shards(odd: Path, tmp_path: Path, tokens: Tensor) -> None:
    whole = odd / "gptq-int4-g128"
    shutil.copytree(whole, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    stored = load_file(whole / "model.safetensors")
    weight_map = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(sorted(stored))}
    for file in set(weight_map.values()):
        save_file({n: stored[n] for n in stored if weight_map[n] == file}, tmp_path / "sharded" / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(logits(load(tmp_path / "sharded"), tokens), logits(load(whole), tokens))
    assert torch.equal(
        PackedSource(tmp_path / "sharded").tensor(f"{Q_PROJ}.weight"), PackedSource(whole).tensor(f"{Q_PROJ}.weight")
    )
