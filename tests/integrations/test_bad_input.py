"""Damaged or foreign checkpoints: one sentence at load that names the tensor or the key, what was found and what is expected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hubquant_kernels.layers import Int4Linear
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hubquant.errors import BadModel

pytestmark = pytest.mark.usefixtures("our_loaders")

Q_PROJ = "model.layers.1.self_attn.q_proj"
Spoil = Callable[..., Path]


def load(folder: Path, **options: Any) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return model


WORDS = torch.zeros(2, 2, dtype=torch.int32)
NOTHING = {f"{Q_PROJ}.{suffix}": None for suffix in ("qweight", "qzeros", "scales", "g_idx")}


@pytest.mark.parametrize(
    ("method", "tensors", "settings", "message"),
    [
        ("gptq", {f"{Q_PROJ}.qweight": None}, {}, rf"tensor {Q_PROJ}\.qweight is missing"),
        ("awq", {f"{Q_PROJ}.qweight": None}, {}, rf"tensor {Q_PROJ}\.qweight is missing"),
        ("gptq", {f"{Q_PROJ}.qzeros": None}, {}, rf"tensor {Q_PROJ}\.qzeros is missing"),
        ("gptq", {f"{Q_PROJ}.g_idx": None}, {}, rf"tensor {Q_PROJ}\.g_idx is missing"),
        ("awq", {f"{Q_PROJ}.scales": None}, {}, rf"tensor {Q_PROJ}\.scales is missing"),
        ("gptq", NOTHING, {}, rf"hold neither {Q_PROJ}\.qweight nor {Q_PROJ}\.weight; are they complete"),
        ("awq", NOTHING, {}, rf"hold neither {Q_PROJ}\.qweight nor {Q_PROJ}\.weight; are they complete"),
        ("gptq", {f"{Q_PROJ}.qweight": WORDS}, {}, rf"tensor {Q_PROJ}\.qweight has shape \[2, 2\]; its config asks for \[8, 64\]"),
        ("awq", {f"{Q_PROJ}.qzeros": WORDS}, {}, rf"tensor {Q_PROJ}\.qzeros has shape \[2, 2\]; its config asks for \[1, 8\]"),
        ("gptq", None, {"group_size": 32}, r"qzeros has shape \[1, \d+\]; its config asks for \[2, \d+\]"),
        ("gptq", None, {"bits": 3}, r"qweight has shape \[8, \d+\]; its config asks for \[6, \d+\]"),
        ("gptq", None, {"bits": 8}, r"qweight has shape \[8, \d+\]; its config asks for \[16, \d+\]"),
        ("gptq", None, {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; known: gptq, gptq_v2"),
        (
            "awq",
            None,
            {"version": "llm-awq"},
            "AWQ with 4 bits in layout 'llm-awq'; hubquant reads 4 bits in layouts gemm, gemv, gemv_fast",
        ),
        ("awq", None, {"bits": 8}, "AWQ with 8 bits in layout 'gemm'"),
        ("awq", None, {"group_size": 48}, r"tensor model\.layers\.0\.\S+\.scales has 1 groups of 48; .* has 64 channels"),
        ("gptq", {f"{Q_PROJ}.g_idx": torch.full((64,), 1).int()}, {}, rf"tensor {Q_PROJ}\.g_idx names groups 1 to 1; there are 1"),
        ("gptq", {f"{Q_PROJ}.g_idx": torch.full((64,), -1).int()}, {}, rf"tensor {Q_PROJ}\.g_idx names groups -1 to -1"),
        ("gptq", {f"{Q_PROJ}.g_idx": torch.zeros(64)}, {}, rf"tensor {Q_PROJ}\.g_idx is of type F32; the layout has int32 there"),
        ("gptq", {f"{Q_PROJ}.qweight": torch.zeros(8, 64).long()}, {}, rf"{Q_PROJ}\.qweight is of type I64; .* int32 there"),
        ("awq", {f"{Q_PROJ}.scales": torch.zeros(1, 64).int()}, {}, rf"{Q_PROJ}\.scales is of type I32; .* float16 there"),
        ("gptq", {f"{Q_PROJ}.bias": None}, {}, rf"tensor {Q_PROJ}\.bias is missing from the files"),
        ("gptq", None, {"group_size": 0}, "group_size is 0; it is a positive number, or -1"),
        ("awq", None, {"group_size": 0}, "group_size is 0; it is a positive number, or -1"),
        ("gptq", None, {"group_size": -2}, "group_size is -2; it is a positive number"),
        ("gptq", None, {"group_size": "128"}, "group_size is '128'; it is a positive number"),
        ("gptq", None, {"group_size": None}, "group_size is None; it is a positive number"),
        ("gptq", None, {"bits": "4"}, "bits is '4'; hubquant reads 2, 3, 4, 8 bits"),
        ("gptq", None, {"bits": 5}, "bits is 5; hubquant reads 2, 3, 4, 8 bits"),
        ("gptq", None, {"pack_dtype": "int64"}, "pack_dtype is 'int64'; hubquant reads int32"),
        ("gptq", None, {"checkpoint_format": None, "format": "gptq_p"}, "checkpoint_format is 'gptq_p'; known: gptq, gptq_v2"),
        ("gptq", None, {"dynamic": ["a"]}, r"dynamic is \['a'\]; it names patterns"),
        ("gptq", None, {"dynamic": {"+:(": {"bits": 8}}}, r"dynamic has pattern '\+:\(', which is no regular expression"),
        ("gptq", None, {"dynamic": {"x": 8}}, r"dynamic\['x'\] is 8; it is a table of settings"),
        ("gptq", None, {"dynamic": {".*": {"bits": 5}}}, "bits is 5; hubquant reads"),
        ("gptq", None, {"dynamic": {".*q_proj": {"group_size": 0}}}, "group_size is 0; it is a positive number"),
        ("gptq", None, {"dynamic": {".*q_proj": {"bits": 8}}}, r"q_proj\.qweight has shape \[8, 64\]; .* asks for \[16, 64\]"),
        ("awq", None, {"version": "gemv"}, r"q_proj\.qzeros has shape \[1, 8\]; its config asks for \[64, 2\]"),
        ("awq", None, {"version": "gemv", "group_size": 48}, "groups of 16, 32, 64 or at least 128 channels, not 48"),
        ("gptq", {"model.layers.7.mlp.up_proj.qweight": WORDS}, {}, r"hold model\.layers\.7\.mlp\.up_proj\.qweight, .* no module"),
        ("gptq", {"model.norm.qweight": WORDS}, {}, r"hold model\.norm\.qweight, but module model\.norm is a LlamaRMSNorm"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_sentence(
    spoil: Spoil, method: str, tensors: dict[str, Tensor | None] | None, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadModel, match=message) as raised:
        load(spoil(method, tensors, **settings))
    assert "\n" not in str(raised.value)


def test_dense_files_that_claim_to_be_packed(odd: Path, spoil: Spoil) -> None:
    folder = spoil("gptq")
    shutil.copyfile(odd.parent / "base" / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(BadModel, match=r"its files hold no tensor named \*\.qweight"):
        load(folder)


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("key", ["bits", "group_size"])
def test_a_missing_key_is_named(spoil: Spoil, method: str, key: str) -> None:
    folder = spoil(method)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"][key]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match=rf"quantization_config\.{key} is missing from config\.json, which has .*quant_method"):
        load(folder)


def test_a_config_without_a_method_is_transformers_to_refuse(spoil: Spoil) -> None:
    folder = spoil("gptq")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["quant_method"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no `quant_method` attribute"):
        load(folder)


def test_pickled_weights_are_not_loaded(spoil: Spoil) -> None:
    folder = spoil("gptq")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadModel, match=r"pytorch_model\.bin is no safetensors file"):
        load(folder)


def test_tensors_of_one_linear_on_two_devices(spoil: Spoil) -> None:
    model = load(spoil("gptq"))
    for module in model.modules():
        if isinstance(module, Int4Linear):
            module.restore()
    layer = model.get_submodule(Q_PROJ)
    layer.scales = layer.scales.to("meta")
    with pytest.raises(
        BadModel, match=rf"{Q_PROJ} must be on one device; device_map puts qweight on cpu, qzeros on cpu, scales on meta"
    ):
        model.hf_quantizer._process_model_after_weight_loading(model)


def test_a_model_that_is_not_packed_is_not_ours_to_quantize(odd: Path) -> None:
    from transformers import GPTQConfig

    with pytest.raises(ValueError, match="does require the model to be pre-quantized"):
        load(odd.parent / "base", quantization_config=GPTQConfig(bits=4, dataset=["text"]))
