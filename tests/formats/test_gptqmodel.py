"""gptqmodel as the stranger: it loads our folders, and we load one of its own. `make test-gptqmodel` installs it and runs this."""

import contextlib
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytestmark = [pytest.mark.gptqmodel, pytest.mark.timeout(1800)]  # it compiles its C++ extensions at the first use
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its default on two cores is one, with which it refuses to load
gptqmodel = pytest.importorskip("gptqmodel")

from hubquant_kernels.layers import GptqLinear  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from transformers.quantizers import auto  # noqa: E402

from hubquant.formats.packedsource import PackedSource  # noqa: E402
from hubquant.integrations.transformers import GptqLoader, install, restore  # noqa: E402

FOLDERS = ("gptq-int4-g128", "awq-int4-g128")


@pytest.fixture
def our_loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HUBQUANT_BACKEND", "1")
    install()
    yield
    restore()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 2048, (2, 64), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    result: Tensor = model(tokens).logits.float()
    return result


def dense(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The model with the folder's weights decoded by us, as plain linears in `dtype`."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    source = PackedSource(folder)
    missing, unexpected = model.load_state_dict({n: source.tensor(n) for n in source.names()}, strict=False)
    assert missing in ([], ["lm_head.weight"])
    assert not unexpected
    model.tie_weights()
    return model


def reference(folder: Path, tokens: Tensor) -> tuple[Tensor, float]:
    """Logits of the decoded weights in float32, and how far another implementation in float16 may be from them.

    The decoded weights themselves, run in float16, are off by what that precision costs in this model; another order of the
    same operations may be off as much in the other direction.
    """
    exact = logits(dense(folder, torch.float32), tokens)
    return exact, 2 * float((logits(dense(folder, torch.float16), tokens) - exact).abs().max())


@pytest.mark.parametrize("name", FOLDERS)
def test_gptqmodel_reads_our_folders(quantized_demo: Path, bundled: Path, tokens: Tensor, name: str) -> None:
    """Through plain transformers, with hubquant imported and stepping aside."""
    folder = quantized_demo / name
    exact, tolerance = reference(folder, tokens)
    base = logits(AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32), tokens)
    assert tolerance < float((base - exact).abs().max()) / 10  # what quantization changes is not mistaken for rounding
    for dtype in (torch.float32, torch.float16):
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
        assert type(model.model.layers[0].self_attn.q_proj).__module__.startswith("gptqmodel.")
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        difference = float((logits(model, tokens) - exact).abs().max())
        print(f"{name} {dtype}: {type(model.model.layers[0].self_attn.q_proj).__name__} {difference:.2g} of {tolerance:.2g}")
        assert difference <= tolerance


@pytest.fixture(scope="module", params=[False, True], ids=["in order", "desc_act"])
def theirs(request: pytest.FixtureRequest, bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model quantized by gptqmodel from a few windows, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(bundled)
    ids = tokenizer((files("hubquant") / "texts" / "prose-calib.txt").read_text(encoding="utf-8"))["input_ids"]
    windows = [{"input_ids": ids[i : i + 256], "attention_mask": [1] * 256} for i in range(0, 1024, 256)]
    config = gptqmodel.QuantizeConfig(bits=4, group_size=128, desc_act=request.param)
    folder = tmp_path_factory.mktemp("theirs")
    with contextlib.chdir(folder):  # it writes its logs where it is run
        model = gptqmodel.GPTQModel.load(str(bundled), config, dtype=torch.float32)
        model.quantize(windows, batch_size=1)
        model.save(str(folder / "model"))
    return folder / "model"


def test_we_read_what_gptqmodel_made(theirs: Path, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, tolerance = reference(theirs, tokens)
    stock = AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32)
    assert type(stock.model.layers[0].self_attn.q_proj).__module__.startswith("gptqmodel.")
    assert float((logits(stock, tokens) - exact).abs().max()) <= tolerance  # we decode its weights as it does itself
    monkeypatch.setenv("HUBQUANT_BACKEND", "1")
    install()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32, output_loading_info=True)
    finally:
        restore()
    assert isinstance(model.model.layers[0].self_attn.q_proj, GptqLinear)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    difference = float((logits(model, tokens) - exact).abs().max())
    print(f"ours {difference:.2g}, stock {float((logits(stock, tokens) - exact).abs().max()):.2g}, of {tolerance:.2g}")
    assert difference <= tolerance / 100  # both in float32


def test_hubquant_steps_aside_unless_told_not_to(our_loader: None) -> None:
    assert auto.AUTO_QUANTIZER_MAPPING["gptq"] is GptqLoader
    restore()
    assert auto.AUTO_QUANTIZER_MAPPING["gptq"] is not GptqLoader
    os.environ.pop("HUBQUANT_BACKEND")
    install()
    assert auto.AUTO_QUANTIZER_MAPPING["gptq"] is not GptqLoader
