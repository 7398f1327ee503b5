"""Fused experts one by one: the same function, the same bytes from every form of checkpoint, and what each expert sees."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from hubquant.calibrate.statistics import token_importance
from hubquant.errors import BadModel
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder, read_config
from hubquant.model.experts import Experts
from hubquant.model.layer import Layer
from hubquant.model.layercall import apply_layer
from hubquant.model.topology import LayerInput, find_inputs
from hubquant.onepass import observe

Models = Callable[[str], Path]
# by model_type: the published name of expert 1's up projection, its router, and whether the inner activations absorb a scale
FAMILIES = {
    "mixtral": ("block_sparse_moe.experts.1.w3.weight", "block_sparse_moe.gate.weight", True),
    "qwen3_moe": ("mlp.experts.1.up_proj.weight", "mlp.gate.weight", True),
    "deepseek_v2": ("mlp.experts.1.up_proj.weight", "mlp.gate.weight", True),
    "deepseek_v3": ("mlp.experts.1.up_proj.weight", "mlp.gate.weight", True),
    "gpt_oss": ("mlp.experts.1.up_proj.weight", "mlp.router.weight", False),  # (up + 1) · gate: a factor does not pass
}


def decoder_of(folder: Path) -> Decoder:
    return Decoder(read_config(folder), Checkpoint(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_taken_apart_is_the_model(family: str, mixture_of_experts: Models, tokens: Tensor) -> None:
    folder = mixture_of_experts(family)
    decoder = decoder_of(folder)
    hidden = decoder.embed(tokens)
    found: list[LayerInput] = []
    with torch.no_grad():
        for index in range(2):
            with decoder.layer(index) as layer:
                found = find_inputs(layer, hidden[:1].clone(), decoder.call(index))
                decoder.run(index, layer, hidden)
        with decoder.head():
            logits = decoder.logits(hidden)
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
    # sums of at most 96 terms in another order, through two layers
    torch.testing.assert_close(logits, whole, rtol=0, atol=float(whole.abs().max()) * 96 * 2.0**-22)
    _, router, absorbs = FAMILIES[family]
    assert f"model.layers.1.{router}" in {decoder.names.stored(n) for n in decoder.routers()}
    by_linears = {i.linears: i for i in found}
    for expert in ("mlp.experts.0", "mlp.experts.3"):
        read = by_linears[(f"{expert}.gate_proj", f"{expert}.up_proj")]
        assert read.absorber is None and read.follows == ("mlp.router" if family == "gpt_oss" else "mlp.gate")
        down = by_linears[(f"{expert}.down_proj",)].absorber
        assert (down.module if down else None) == (f"{expert}.up_proj" if absorbs else None)
    block = next(i for i in found if i.name == read.follows)
    assert block.absorber is not None and block.absorber.module == "post_attention_layernorm"
    assert any("shared_experts.gate_proj" in n for n in block.linears) == family.startswith("deepseek")


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_a_scale_on_what_the_experts_share_leaves_the_function(family: str, mixture_of_experts: Models, tokens: Tensor) -> None:
    """In two parts, as of a layer with very many experts."""
    decoder = decoder_of(mixture_of_experts(family))
    hidden = decoder.embed(tokens)
    with torch.no_grad(), decoder.layer(1) as module:
        inputs = find_inputs(module, hidden[:1].clone(), decoder.call(1))
        before = apply_layer(module, hidden[:1].clone(), decoder.call(1))
        statistics = observe(decoder, 1, module, inputs, hidden.clone())
        tensors = {n: p.detach().clone() for n, p in module.named_parameters()}
        folds: Mapping[str, Tensor] = {}
        scales = {i.name: torch.rand(statistics[i.name].width) + 0.5 for i in inputs if i.name in ("mlp.gate", "mlp.router")}
        for last in (False, True):
            of_part = [i for i in inputs if (".experts.3." in i.name) == last]
            part = {n: t for n, t in tensors.items() if (".experts.3." in n) == last}
            folded = Layer(decoder.prefix(1), part, tuple(of_part), statistics).folded(scales, torch.float16, folds)
            folds = folded.folds
            for name, value in folded.tensors.items():
                module.get_parameter(name).copy_(value)
        after = apply_layer(module, hidden[:1].clone(), decoder.call(1))
        seen = observe(decoder, 1, module, inputs, hidden.clone())
    # every product of the layer is off by a few roundings of 2^-24, accumulated over sums of at most 96 terms
    assert scales and float((after - before).abs().max()) < 96 * 2.0**-24 * float(before.abs().max()) * 8
    wanted = folded.statistics["mlp.experts.3.gate_proj"].hessian
    torch.testing.assert_close(seen["mlp.experts.3.gate_proj"].hessian, wanted, rtol=1e-3, atol=float(wanted.abs().max()) * 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_published_checkpoints(family: str, mixture_of_experts: Models) -> None:
    decoder = decoder_of(mixture_of_experts(family))
    up, _, _ = FAMILIES[family]
    name = "model.layers.1.mlp.experts.1.up_proj"
    assert decoder.names.stored(f"{name}.weight") == f"model.layers.1.{up}"
    assert decoder.names.stored(f"{name}.qweight") == f"model.layers.1.{up.removesuffix('weight')}qweight"
    if family != "gpt_oss":  # whose published form is fused
        assert {decoder.names.stored(n) for n in decoder.shapes()} == set(Checkpoint(mixture_of_experts(family)).names())


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_fused_and_separate_checkpoints_are_the_same(family: str, mixture_of_experts: Models, tmp_path: Path) -> None:
    folder = mixture_of_experts(family)
    fused = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    save_file({n: t.contiguous() for n, t in fused.state_dict().items()}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert "model.layers.1.mlp.experts.gate_up_proj" in Checkpoint(tmp_path).names()
    separate, joined = decoder_of(folder), decoder_of(tmp_path)
    assert separate.shapes() == joined.shapes()
    for name in separate.shapes():
        assert torch.equal(separate.source.tensor(name), joined.source.tensor(name)), name


def test_interleaved_and_transposed_rows(mixture_of_experts: Models) -> None:
    folder = mixture_of_experts("gpt_oss")
    decoder, path = decoder_of(folder), "model.layers.0.mlp.experts"
    stored = load_file(folder / "model.safetensors")
    for row, linear in enumerate(("gate_proj", "up_proj")):
        wanted = stored[f"{path}.gate_up_proj"][2][:, row::2].T
        assert torch.equal(decoder.source.tensor(f"{path}.2.{linear}.weight"), wanted)
        assert torch.equal(decoder.source.tensor(f"{path}.2.{linear}.bias"), stored[f"{path}.gate_up_proj_bias"][2][row::2])
    assert torch.equal(decoder.source.tensor(f"{path}.2.down_proj.weight"), stored[f"{path}.down_proj"][2].T)


def test_a_missing_expert_is_named(mixture_of_experts: Models, tmp_path: Path) -> None:
    folder = mixture_of_experts("mixtral")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(BadModel, match=r"layers\.1\.mlp\.experts\.2\.gate_proj\.weight is missing"):
        decoder_of(tmp_path)


def test_no_memory_is_asked_for_experts() -> None:
    """A layer of DeepSeek-V3: 45 GB of experts in float32."""

    class Empty:
        def names(self) -> list[str]:
            return []

        def tensor(self, name: str) -> Tensor:
            raise KeyError(name)

        def as_saved(self, name: str) -> bool:
            return False

    config = AutoConfig.for_model("deepseek_v3", num_hidden_layers=1, first_k_dense_replace=0)
    decoder = Decoder(config, Empty())
    assert sum(n.startswith("model.layers.0.mlp.experts.255.") for n in decoder.shapes()) == 3


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("every_token", [False, True])
def test_statistics_are_those_of_the_tokens_routed_to_each_expert(
    family: str, every_token: bool, mixture_of_experts: Models, tokens: Tensor
) -> None:
    decoder = decoder_of(mixture_of_experts(family))
    hidden = decoder.embed(tokens)
    with torch.no_grad(), decoder.layer(0) as layer:
        inputs = find_inputs(layer, hidden[:1].clone(), decoder.call(0))
        experts = layer.get_submodule("mlp.experts")
        assert isinstance(experts, Experts)
        routed: list[tuple[Tensor, Tensor]] = []
        handle = experts.register_forward_pre_hook(lambda _m, args: routed.append((args[0], args[1])))
        before = apply_layer(layer, hidden[:1].clone(), decoder.call(0))
        handle.remove()
        routed.clear()
        experts.every_token = every_token
        after = apply_layer(layer, hidden[:1].clone(), decoder.call(0))
        # an expert's products over all tokens are sums in another order than over some
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
        handle = experts.register_forward_pre_hook(lambda _m, args: routed.append((args[0], args[1])))
        hidden[:, 0] *= 100  # an attention sink in each window
        outputs = [apply_layer(layer, window.clone(), decoder.call(0)) for window in decoder.windows(hidden)]
        importance = torch.cat([token_importance(output) for output in outputs])
        assert int((importance > 1).sum()) == len(hidden)
        routed.clear()
        inner: dict[int, list[Tensor]] = {index: [] for index in range(experts.fused.count)}
        handles = [
            experts.get_submodule(f"{index}.down_proj").register_forward_pre_hook(
                lambda _m, args, i=index: inner[i].append(args[0])
            )
            for index in inner
        ]
        statistics = observe(decoder, 0, layer, inputs, hidden, every_token)
        for each in handles:
            each.remove()
        assert not experts.every_token, "or the next layer's inputs would not be told apart"
        handle.remove()
        x, chosen = torch.cat([r[0] for r in routed]), torch.cat([r[1] for r in routed])
        fused = experts.fused
        for index in range(fused.count):
            here = slice(None) if every_token else (chosen == index).any(dim=1)
            mine, counts = x[here], importance[here, None]
            seen = statistics[f"mlp.experts.{index}.gate_proj"]
            assert seen.n_tokens == len(mine)
            check_hessian(seen.hessian, mine, counts)
            expert = experts.get_submodule(str(index))
            expected = fused.activate(expert.get_submodule("gate_proj")(mine), expert.get_submodule("up_proj")(mine))
            read = torch.cat([expected[:0], *inner[index]])
            torch.testing.assert_close(
                read, expected
            )  # products of a window's tokens and of all windows' are summed in other orders
            check_hessian(statistics[f"mlp.experts.{index}.down_proj"].hessian, read, counts)


def check_hessian(found: Tensor, x: Tensor, counts: Tensor) -> None:
    """Σ count·xᵀx of rows x [n, in], counts [n, 1]: each entry sums n products of rows that were rounded once."""
    exact, size = ((x.double() * counts.double()).T @ x.double(), (x.double().abs() * counts.double()).T @ x.double().abs())
    assert bool(((found.double() - exact).abs() <= (len(x) + 4) * 2.0**-23 * size).all())


def test_experts_that_compute_something_else_are_declined(mixture_of_experts: Models, tokens: Tensor) -> None:
    decoder = decoder_of(mixture_of_experts("qwen3_moe"))
    hidden = decoder.embed(tokens)
    with torch.no_grad(), decoder.layer(0) as layer:
        own = layer.get_submodule("mlp.experts").fused.module
        own.forward = lambda x, index, weights: x  # as if the class did not follow the interface it claims
        with pytest.raises(BadModel, match="Qwen3MoeExperts compute something else"):
            find_inputs(layer, hidden[:1].clone(), decoder.call(0))
