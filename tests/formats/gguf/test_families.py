import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.formats.gguf.families import FAMILIES, family_of_file, family_of_model
from hubquant.formats.gguf.families.family import Family, Form, Layout, Parameters, Place
from hubquant.formats.gguf.families.views import stacked
from hubquant.formats.gguf.reader import GgufSource
from tests.formats.gguf.familymodels import weights as checkpoint_weights

WHOLE = ("mlp.gate.weight", "mlp.router.weight", "wpe.weight")
HEADS = {"attention.head_count": 4, "attention.head_count_kv": 2, "expert_count": 2}


def layout(architecture: str, n_layer: int = 2, **parameters: Any) -> Layout:
    return family_of_file(architecture).layout(n_layer, {**HEADS, **parameters})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.architecture)
def test_every_name_is_one_of_the_architecture_in_the_gguf_package(family: Family) -> None:
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    theirs = {gguf.TENSOR_NAMES[kind].format(bid=1) for kind in gguf.MODEL_TENSORS[arch]}
    found = family.layout(2, HEADS)
    stored = [name for hf in found.names() for name in found.gguf_names(hf)]
    assert {re.sub(r"blk\.\d+", "blk.1", name).rpartition(".")[0] for name in stored} <= theirs
    assert len(set(stored)) >= len(family.layer) * 2  # no two tensors fell on one name, but where they are joined


def test_what_is_written_is_read_back(
    random_model_name: str, random_model: Callable[[str], Path], write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    """Every tensor under its Hugging Face name. 1 + w of Gemma's norms is rounded once: half a unit of 2^-22 for |1 + w| < 4."""
    folder = random_model(random_model_name)
    weights = checkpoint_weights(folder)
    exact = GgufSource(write_gguf(tmp_path / "m.gguf", "F32", folder))
    half = GgufSource(write_gguf(tmp_path / "h.gguf", "F16", folder))
    assert set(exact.names()) == set(weights)
    for name, weight in weights.items():
        added = "gemma" in random_model_name and "norm" in name
        torch.testing.assert_close(exact.tensor(name), weight, rtol=0, atol=2**-23 if added else 0)
        if weight.ndim > 1:  # but what chooses among experts, and positions, which no file rounds
            expected = weight if half.type_of(name) == "F32" and name.endswith(WHOLE) else weight.half().float()
            assert torch.equal(half.tensor(name), expected), name


def test_buffers_are_not_stored_and_strangers_are_refused() -> None:
    llama = layout("llama")
    assert llama.gguf_names("model.layers.0.self_attn.rotary_emb.inv_freq") == ()
    with pytest.raises(BadModel, match=r"mlp\.experts\.gate.* architecture llama"):
        llama.gguf_names("model.layers.0.mlp.experts.gate.weight")
    with pytest.raises(BadModel, match="ffn_gate_inp"):
        llama.shapes({"blk.0.ffn_gate_inp.weight": (4, 4)})


def test_model_types() -> None:
    assert family_of_model({"model_type": "mistral"}) is family_of_file("llama")
    with pytest.raises(BadModel, match=r"BloomForCausalLM \(model_type 'bloom'\).*llama, mistral, qwen2, qwen3"):
        family_of_model({"model_type": "bloom", "architectures": ["BloomForCausalLM"]})
    with pytest.raises(BadModel, match="'bloom'"):
        family_of_file("bloom")


def test_a_missing_or_a_spare_tensor_is_named() -> None:
    llama = layout("llama")
    complete = set(llama.names())
    llama.check_complete(complete)
    with pytest.raises(BadModel, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        llama.check_complete(complete - {"model.layers.1.mlp.down_proj.weight"})
    with pytest.raises(BadModel, match=r"model\.layers\.2\..*num_hidden_layers = 2"):
        llama.gguf_names("model.layers.2.mlp.down_proj.weight")
    llama.check_complete(complete - {"model.layers.0.self_attn.q_proj.bias", "lm_head.weight"})  # optional


def test_reordered_rows_rotate_in_pairs_as_the_original_rotates_in_halves() -> None:
    """What the reordering is for: rotating (2i, 2i+1) of the stored rows is rotating (i, i + d/2) of the original rows."""
    heads, size, position = 3, 8, 5.0
    q = torch.randn(heads * size, 1, dtype=torch.float64)
    angle = position * 10000.0 ** -(torch.arange(size // 2) / (size // 2)).double()
    halves = q.view(heads, 2, size // 2)
    rotated = torch.stack(
        [halves[:, 0] * angle.cos() - halves[:, 1] * angle.sin(), halves[:, 1] * angle.cos() + halves[:, 0] * angle.sin()], 1
    ).reshape(-1, 1)
    parameters = {"attention.head_count": heads}
    name = "model.layers.0.self_attn.q_proj.weight"
    (slot,) = layout("llama", **parameters).slots({name: (heads * size, 1)})[0][name]
    pairs = torch.view_as_complex(slot.values(q, parameters).view(heads, size // 2, 2))
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).reshape(-1, 1)
    torch.testing.assert_close(turned, slot.values(rotated, parameters))


def test_only_q_and_k_of_llama_are_reordered() -> None:
    def stored(architecture: str, name: str, rows: int) -> list[float]:
        found = layout(architecture)
        (slot,) = found.slots({f"model.layers.0.{name}": (rows,)})[0][f"model.layers.0.{name}"]
        return slot.values(torch.arange(float(rows)), found.parameters).tolist()

    assert stored("llama", "self_attn.v_proj.bias", 8) == list(range(8))
    assert stored("llama", "self_attn.k_proj.bias", 8) == [0, 2, 1, 3, 4, 6, 5, 7]
    assert stored("qwen2", "self_attn.k_proj.bias", 8) == list(range(8))
    with pytest.raises(BadModel, match=r"q_proj.* 12 rows, which 4 heads"):
        layout("llama").slots({"model.layers.0.self_attn.q_proj.weight": (12, 4)})


def _transposed(tensor: Tensor, _parameters: Parameters) -> Tensor:
    return tensor.transpose(-1, -2)


MADE_UP: dict[str, tuple[Form, tuple[int, ...]]] = {
    # a fused tensor that becomes two
    "fused.weight": (
        Form(
            (Place(lambda t, _: t[:3], "ffn_gate.weight"), Place(lambda t, _: t[3:], "ffn_up.weight")),
            shape=lambda stored, _: (stored[0][0] + stored[1][0], stored[0][1]),
        ),
        (8, 4),
    ),
    # two that are joined, the later one first
    "key.bias": (Form((Place(name="attn_qkv.bias", index=1),), shape=lambda stored, _: (2,)), (2,)),
    "query.bias": (Form((Place(name="attn_qkv.bias", index=0),), shape=lambda stored, _: (stored[0][0] - 2,)), (6,)),
    # experts stacked to three dimensions, and a stack whose matrices are transposed
    "experts.{expert}.weight": (stacked("ffn_up_exps.weight"), (3, 4)),
    "experts": (
        Form((Place(_transposed, "ffn_down_exps.weight"),), shape=lambda s, _: (*s[0][:-2], s[0][-1], s[0][-2])),
        (2, 4, 3),
    ),
    # a norm that is stored one higher
    "norm.weight": (Form((Place(name="attn_norm.weight", plus=1.0),)), (4,)),
}


def test_tensors_can_be_split_joined_stacked_transposed_and_shifted() -> None:
    forms = {name: form for name, (form, _) in MADE_UP.items()}
    family = Family("llama", ("made-up",), lambda _: {}, tuple(forms), outside=(), head=None, forms=forms)
    made_up = family.layout(1, {"expert_count": 2})
    names = [(name.replace("{expert}", e), shape) for name, (_, shape) in MADE_UP.items() for e in ("0", "1")]
    tensors = {f"model.layers.0.{name}": torch.randn(shape) for name, shape in names}
    slots, stored = made_up.slots({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert stored == {
        "blk.0.ffn_gate.weight": (3, 4),
        "blk.0.ffn_up.weight": (5, 4),
        "blk.0.attn_qkv.bias": (8,),
        "blk.0.ffn_up_exps.weight": (2, 3, 4),
        "blk.0.ffn_down_exps.weight": (2, 3, 4),
        "blk.0.attn_norm.weight": (4,),
    }
    assert made_up.shapes(stored) == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    file = {name: torch.zeros(shape) for name, shape in stored.items()}
    for name, tensor in tensors.items():
        for slot in slots[name]:
            file[slot.gguf_name][slot.start : slot.start + slot.shape[0]] = slot.values(tensor, {})
    assert torch.equal(file["blk.0.attn_qkv.bias"][:6], tensors["model.layers.0.query.bias"])
    assert torch.equal(file["blk.0.ffn_down_exps.weight"][1], tensors["model.layers.0.experts"][1].T)
    for name, tensor in tensors.items():
        back = torch.empty_like(tensor)
        for slot in slots[name]:
            slot.put_back(file[slot.gguf_name][slot.start : slot.start + slot.shape[0]], back, {})
        torch.testing.assert_close(back, tensor, rtol=0, atol=2**-22 if name.endswith("norm.weight") else 0)
