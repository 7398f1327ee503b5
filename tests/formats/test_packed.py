"""GPTQ and AWQ folders: what is solved is what is read back, what cannot be packed stays in 16 bit and is recorded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hubquant.artifact import Artifact, Report, file_sha256
from hubquant.errors import BadModel
from hubquant.formats.packed import solver
from hubquant.formats.packedsource import PackedSource
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.layer import Layer
from hubquant.quantize.actorder import solve_static
from hubquant.quantize.awq import search_scale
from hubquant.quantize.gptq import solve
from hubquant.quantize.grid import Grid
from hubquant.recipe import BITS, ROW, override, variant
from tests.formats.packedlayers import AWQ, GPTQ, PREFIX, layer, make


def record(artifact: Artifact, name: str) -> tuple[str, str]:
    found = next(t for t in artifact.tensors if t.name == PREFIX + name)
    return found.type, found.note


@pytest.mark.parametrize("variant", [GPTQ, AWQ], ids=lambda v: v.name)
def test_what_was_solved_is_what_is_read(base: Path, variant: Any) -> None:
    one = layer((24, 256), (16, 128))
    folder, artifact = make(base, one, variant)
    source = PackedSource(folder)
    expected_names = {"norm.weight", "up.weight", "up.bias", "down.weight"}
    assert set(source.names()) == {PREFIX + n for n in expected_names} | {"model.embed_tokens.weight"}
    grid = Grid(4, 128, variant.symmetric)
    for name in ("up", "down"):
        damp_ratio = one.statistics[name].damp_ratio
        solved = solve(one.tensors[f"{name}.weight"], one.statistics[name].hessian, grid, damp_ratio).dequantize()
        assert torch.equal(source.tensor(f"{PREFIX}{name}.weight"), solved)
        found = next(t for t in artifact.tensors if t.name == f"{PREFIX}{name}.weight")
        assert (found.type, found.note) == ("int4-g128", "")
        # the solver's sums and these are float32's, in another order
        expected = one.statistics[name].output_error(one.tensors[f"{name}.weight"], solved)
        assert found.output_error == pytest.approx(expected, rel=1e-4)
        assert found.output_error is not None
        assert 0 < found.output_error < 0.05
    for name in ("norm.weight", "up.bias"):
        assert torch.equal(source.tensor(PREFIX + name), one.tensors[name].half())


EVERY = [f"gptq-int{b}-{g}{a}" for b in BITS for g in ("g32", "g64", "g128", "row") for a in ("", "-asym")]
ORDERED = [f"gptq-int{b}-g{g}-{o}" for b in (3, 4) for g in (32, 128) for o in ("static", "actorder")]


@pytest.mark.parametrize("name", [*EVERY, *ORDERED, "awq-int4-g32", "awq-int4-g64", "awq-int4-row"])
def test_every_bits_group_and_symmetry_is_read_back_as_it_was_solved(base: Path, name: str) -> None:
    """Of two widths, so that a whole row is not one number; and what is stored is near the weights by the width of a step."""
    one, made = layer((32, 256), (32, 128)), variant(name)
    folder, artifact = make(base, one, made)
    block = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (block["bits"], block["group_size"], "dynamic" in block) == (made.bits, made.group_size, False)
    assert block.get("sym", False) == made.symmetric and block.get("desc_act", False) == (made.order == "actorder")
    for linear, width in (("up", 256), ("down", 128)):
        weight, read = one.tensors[f"{linear}.weight"], PackedSource(folder).tensor(f"{PREFIX}{linear}.weight")
        grid = Grid(made.bits, width if made.group_size == ROW else made.group_size, made.symmetric)
        solve = solver(made, replace(grid, group_size=made.group_size))
        assert torch.equal(
            read, solve(weight, one.statistics[linear].hessian, grid, one.statistics[linear].damp_ratio).dequantize()
        )
        n_groups = width // grid.group_size
        assert load_file(folder / "model.safetensors")[f"{PREFIX}{linear}.scales"].shape == (n_groups, 32)
        assert record(artifact, f"{linear}.weight") == (f"int{made.bits}-{name.split('-')[2]}", "")
    error = max(t.output_error or 0 for t in artifact.tensors)
    assert (
        0 < error < 0.4 * 4.0 ** (2 - made.bits)
    )  # two bits leave less than 0.4 of the output's energy, each more a quarter of it


def test_channels_of_like_importance_share_a_scale_and_the_file_says_which(base: Path) -> None:
    one = layer((32, 256), (32, 128))
    stored = load_file(make(base, one, variant("gptq-int4-g32-actorder"))[0] / "model.safetensors")
    index, importance = stored[f"{PREFIX}up.g_idx"], one.statistics["up"].hessian.diagonal()
    assert index.bincount().tolist() == [32] * 8
    assert all(float(importance[index == i].min()) >= float(importance[index == i + 1].max()) for i in range(7))
    static = load_file(make(base, one, variant("gptq-int4-g32-static"))[0] / "model.safetensors")
    assert torch.equal(static[f"{PREFIX}up.g_idx"], torch.arange(256, dtype=torch.int32) // 32)


def test_widths_that_words_do_not_fit_are_by_the_number_of_bits(base: Path) -> None:
    """24 outputs: a word holds 8 zeros of 4 bits, but takes 32 of 3 bits for whole words."""
    one = layer((24, 64), (32, 64))
    assert record(make(base, one, variant("gptq-int4-g64"))[1], "up.weight")[0] == "int4-g64"
    note = "kept in 16 bit: shape [24, 64] is no multiple of [32, 64]"
    assert record(make(base, one, variant("gptq-int3-g64"))[1], "up.weight") == ("F16", note)
    assert record(make(base, one, variant("gptq-int8-g64"))[1], "up.weight")[0] == "int8-g64"


def test_overrides_hold_for_the_linears_that_they_name(base: Path) -> None:
    one = layer((32, 256), (32, 128))
    given = [override(r".*\.up=int8-row-asym"), override(r".*=16")]
    folder, artifact = make(base, one, overrides=given[:1])
    assert record(artifact, "up.weight") == ("int8-row", "")
    assert record(artifact, "down.weight") == ("int4-g128", "")
    block = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert block["dynamic"] == {r"+:^model\.layers\.0\.up$": {"bits": 8, "group_size": -1, "sym": False}}
    solved = solve_static(
        one.tensors["up.weight"], one.statistics["up"].hessian, Grid(8, 256, False), one.statistics["up"].damp_ratio
    )
    assert torch.equal(PackedSource(folder).tensor(PREFIX + "up.weight"), solved.dequantize())
    _, artifact = make(base, one, overrides=given)  # the first that matches holds
    assert record(artifact, "down.weight") == ("F16", "kept in 16 bit: left so by .*")
    assert record(artifact, "up.weight")[0] == "int8-row"
    _, artifact = make(base, one, AWQ, overrides=given)  # which has one grid for all
    assert {record(artifact, name)[0] for name in ("up.weight", "down.weight")} == {"int4-g128"}


def test_an_override_of_no_linear_is_refused(base: Path) -> None:
    """Also one that an earlier one leaves nothing."""
    for texts in ([r".*gate=16"], [r".*\.down=16", r".*layers\.0\.down=int8-g64"]):
        with pytest.raises(BadModel, match=r"is the setting of no linear; their names are like model\.layers\.0\.down, model"):
            make(base, layer((16, 64), (8, 64)), GPTQ, overrides=[override(text) for text in texts])


def test_an_override_s_group_is_made_to_fit_its_own_linear(base: Path) -> None:
    _, artifact = make(base, layer((32, 192), (32, 128)), overrides=[override(r".*\.up=int8-g128")])
    assert record(artifact, "up.weight") == ("int8-g64", "groups of 64: 128 does not divide every width")
    assert record(artifact, "down.weight") == ("int4-g128", "")


def test_a_scale_that_the_norm_absorbs_leaves_the_function_as_it_is(base: Path) -> None:
    """What counts is the product of norm and columns; with the scale it is closer to the base's than without."""
    one = layer((24, 128), (16, 128), absorber=True)
    norm, weight, statistics = one.tensors["norm.weight"], one.tensors["up.weight"], one.statistics["up"]
    s = search_scale([weight], statistics.remaining, Grid(4, 128, False))
    assert float(s.max() / s.min()) > 1.5
    source = PackedSource(make(base, one, AWQ)[0])
    stored_norm = source.tensor(PREFIX + "norm.weight").float()
    assert torch.equal(stored_norm, (norm / s).half().float())
    scaled = statistics.output_error(weight, stored_norm / norm * source.tensor(PREFIX + "up.weight"))
    plain = statistics.output_error(weight, solve(weight, statistics.hessian, Grid(4, 128, False)).dequantize())
    assert scaled < plain


@pytest.mark.parametrize(("width", "group_size"), [(128, 128), (192, 64), (320, 64), (96, 32)])
def test_the_largest_group_that_divides_every_width_is_taken(base: Path, width: int, group_size: int) -> None:
    one = layer((16, width), (8, 256))
    folder, artifact = make(base, one, AWQ)
    note = "" if group_size == 128 else f"groups of {group_size}: 128 does not divide every width"
    assert record(artifact, "up.weight") == record(artifact, "down.weight") == (f"int4-g{group_size}", note)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["group_size"] == group_size
    assert config["modules_to_not_convert"] == ["lm_head"]
    assert PackedSource(folder).tensor(PREFIX + "up.weight").shape == (16, width)


@pytest.mark.parametrize("variant", [GPTQ, AWQ], ids=lambda v: v.name)
@pytest.mark.parametrize("shape", [(16, 80), (12, 64), (6, 33)])
def test_what_cannot_be_packed_stays_in_16_bit_and_is_named(base: Path, variant: Any, shape: tuple[int, int]) -> None:
    """An odd width or height keeps that linear alone; the others are packed with the group that suits them."""
    one = layer(shape, (16, 192))
    folder, artifact = make(base, one, variant)
    note = f"kept in 16 bit: shape {list(shape)} is no multiple of [8, 64]"
    assert record(artifact, "up.weight") == ("F16", note)
    assert record(artifact, "down.weight")[0] == "int4-g64"
    assert torch.equal(PackedSource(folder).tensor(PREFIX + "up.weight"), one.tensors["up.weight"].half())
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    if variant is AWQ:
        assert config["modules_to_not_convert"] == ["lm_head", "model.layers.0.up"]
    else:
        assert config["dynamic"] == {r"-:^model\.layers\.0\.up$": {}}
        assert config["group_size"] == 64


def test_a_model_without_any_linear_that_fits_is_refused(base: Path) -> None:
    with pytest.raises(BadModel, match=r"no linear of this model can be packed: .* multiples of 32 .* multiples of 8"):
        make(base, layer((16, 80), (12, 64)))


def test_a_linear_whose_input_was_not_found_stays_in_16_bit_and_is_named(base: Path) -> None:
    whole = layer((16, 64), (8, 64))
    partial = Layer(PREFIX, whole.tensors, whole.inputs[:1], whole.statistics)
    folder, artifact = make(base, partial)
    assert record(artifact, "down.weight") == ("F16", "kept in 16 bit: nothing that it reads was found")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert list(config["dynamic"]) == [r"-:^model\.layers\.0\.down$"]


def test_a_linear_that_no_token_reached_is_rounded_and_says_so(base: Path) -> None:
    one = layer((16, 64), (8, 64), tokens=torch.zeros(0, 64))
    folder, artifact = make(base, one)
    kind, note = record(artifact, "up.weight")
    assert (kind, "rounded to nearest: no calibration token reached it" in note) == ("int4-g64", True)
    found = next(t for t in artifact.tensors if t.name == PREFIX + "up.weight")
    assert found.output_error is None
    weight, read = one.tensors["up.weight"], PackedSource(folder).tensor(PREFIX + "up.weight")
    assert float((read - weight).square().sum() / weight.square().sum()) < 0.02


@pytest.mark.parametrize("name", ["norm.weight", "up.bias"])
def test_values_beyond_float16_are_refused_by_name(base: Path, name: str) -> None:
    one = layer((16, 64), (8, 64))
    one.tensors[name][3] = 1e5
    with pytest.raises(BadModel, match=rf"tensor model\.layers\.0\.{name} holds 100000, which is beyond float16"):
        make(base, one)


def test_the_folder_is_complete_and_the_artifact_describes_it(base: Path) -> None:
    one = layer((16, 64), (8, 64))
    folder, artifact = make(base, one)
    names = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert {p.name for p in folder.iterdir()} == set(artifact.files) == names
    assert artifact.files == {n: file_sha256(folder / n) for n in names}
    assert artifact.main_file == "model.safetensors"
    assert artifact.size_bytes == (folder / "model.safetensors").stat().st_size
    n_parameters = sum(t.numel() for t in one.tensors.values()) + 320
    assert artifact.bits_per_weight == pytest.approx(8 * artifact.size_bytes / n_parameters)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"]) == ("llama", 64)
    assert config["dtype"] == config["torch_dtype"] == "float16"
    assert config["quantization_config"]["quant_method"] == "gptq"
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16, torch.int32}


@pytest.mark.parametrize("name", ["gptq-int4-g128", "awq-int4-g128"])
def test_a_real_model_reads_back_close_to_its_base(quantized_demo: Path, bundled: Path, name: str) -> None:
    artifact = Report.read(quantized_demo).artifact(name)
    source, dense = PackedSource(quantized_demo / artifact.folder), Checkpoint(bundled)
    assert set(source.names()) == set(dense.names())
    assert len(artifact.tensors) == 4 * 7
    assert all(t.type == "int4-g128" and not t.note and t.output_error is not None for t in artifact.tensors)
    assert max(t.output_error or 0 for t in artifact.tensors) < 0.1
    embedding = "model.embed_tokens.weight"
    assert torch.equal(source.tensor(embedding), dense.tensor(embedding).half())
