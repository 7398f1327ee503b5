"""What each step of the solvers is worth: mean KL divergence of a small model with its layers' linears quantized in memory.

    python tests/benchmarks/ablation.py [MODEL] [--calibration FILE] [--text FILE]

A row is a way to quantize every linear of the layers; embeddings and head stay as they are, and no scales are folded, so that
the rows differ in one step each. What is not built in: statistics of a second, quantized stream, as GPTQ's own code takes them,
and targets corrected for it (W' = W·Σx x̃ᵀ·(Σx̃x̃ᵀ)⁻¹, the first step of Qronos, Zhang et al. 2025, arXiv 2505.11695), both with the
linears of a layer one after the other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubquant.calibrate.source import read_text
from hubquant.calibrate.text import calibration_windows, tokenize
from hubquant.evaluate.perplexity import windows
from hubquant.quantize import gptq
from hubquant.quantize.feedback import block_factor, encode_with_feedback
from hubquant.quantize.ggml import decode, encode
from hubquant.quantize.grid import Grid, round_to_nearest

Solve = Callable[[Tensor, Tensor], Tensor]  # weight, hessian → what is stored of the weight
STAGES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
BATCH = 4
WAYS = ("as one, from the base's inputs", "one after the other, from quantized inputs", "the same, with corrected targets")


class Ablation:
    """A model of Llama's form, its calibration windows, and the base's log-probabilities on the windows that are scored."""

    def __init__(self, folder: str, calibration: str, text: str, max_tokens: int) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.layers: list[nn.Module] = list(self.model.model.layers)
        self.seen = calibration_windows(tokenize(tokenizer, read_text(calibration)), 64, 512)
        self.scored = windows("gptq-512", text, tokenizer, max_tokens)
        self.weights = {n: m.weight.clone() for layer in self.layers for n, m in self.linears(layer).items()}
        self.base = [self._log_probabilities(part) for part in self.scored.tokens.split(BATCH)]

    def linears(self, layer: nn.Module) -> dict[str, nn.Linear]:
        """By their names in the model."""
        prefix = f"model.layers.{self.layers.index(layer)}."
        return {prefix + n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}

    @torch.no_grad()
    def mean_kl(self, solve: Solve, way: str = WAYS[0]) -> float:
        base, call = self._first_inputs()
        quantized = [x.clone() for x in base]
        for layer in self.layers:
            own = self.linears(layer)
            for stage in (tuple("_"),) if way == WAYS[0] else STAGES:
                wanted = {n: m for n, m in own.items() if any(s in n for s in stage)}
                self._quantize(layer, wanted, solve, way, base, quantized, call)
            solved = {n: m.weight.clone() for n, m in own.items()}
            quantized = [_output(layer, x, call) for x in quantized] if way != WAYS[0] else quantized
            self._put(own, self.weights)
            base = [_output(layer, x, call) for x in base]
            self._put(own, solved)
        kl = torch.cat([
            (b.exp() * (b - self._log_probabilities(part))).sum(-1).flatten()
            for part, b in zip(self.scored.tokens.split(BATCH), self.base, strict=True)
        ])  # fmt: skip
        for layer in self.layers:
            self._put(self.linears(layer), self.weights)
        return float(kl.mean())

    def _quantize(
        self, layer: nn.Module, wanted: dict[str, nn.Linear], solve: Solve, way: str, base: Sequence[Tensor],
        quantized: Sequence[Tensor], call: dict[str, Any],
    ) -> None:  # fmt: skip
        """Every wanted linear of the layer, from the inputs that the way asks for."""
        sums = {n: torch.zeros(m.in_features, m.in_features) for n, m in wanted.items()}
        mixed = {n: torch.zeros_like(s) for n, s in sums.items()}
        now = {n: m.weight.clone() for n, m in self.linears(layer).items()}
        for i, x in enumerate(base):
            if way != WAYS[1]:
                self._put(self.linears(layer), self.weights)
                clean = _inputs(layer, wanted, x, call)
                self._put(self.linears(layer), now)
            taken = clean if way == WAYS[0] else _inputs(layer, wanted, quantized[i], call)
            for n, rows in taken.items():
                sums[n] += rows.T @ rows
                if way == WAYS[2]:
                    mixed[n] += clean[n].T @ rows
        for n, module in wanted.items():
            target = self.weights[n]
            if way == WAYS[2]:
                damped = sums[n].double() + gptq.DAMP_RATIO * sums[n].diagonal().mean() * torch.eye(len(sums[n]))
                target = target + torch.linalg.solve(damped, target.double() @ (mixed[n] - sums[n]).double(), left=False).float()
            module.weight.copy_(solve(target, sums[n]))

    def _first_inputs(self) -> tuple[list[Tensor], dict[str, Any]]:
        """What the first layer reads, in batches, and how layers are called."""
        found: list[Tensor] = []
        calls: dict[str, Any] = {}

        def note(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0])
            calls.update({k: v for k, v in kwargs.items() if k != "past_key_values"})

        handle = self.layers[0].register_forward_pre_hook(note, with_kwargs=True)
        for part in self.seen.split(BATCH):
            self.model.model(input_ids=part, use_cache=False)
        handle.remove()
        return found, calls

    @torch.no_grad()
    def _log_probabilities(self, tokens: Tensor) -> Tensor:
        return torch.log_softmax(self.model(input_ids=tokens).logits[:, :-1].float(), -1)

    @staticmethod
    def _put(linears: dict[str, nn.Linear], weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for n, module in linears.items():
                module.weight.copy_(weights[n])


def _output(layer: nn.Module, x: Tensor, call: dict[str, Any]) -> Tensor:
    output = layer(x, **call)
    return output[0] if isinstance(output, tuple) else output


def _inputs(layer: nn.Module, wanted: dict[str, nn.Linear], x: Tensor, call: dict[str, Any]) -> dict[str, Tensor]:
    """Rows [tokens, in] that each linear reads."""
    found: dict[str, Tensor] = {}
    handles = [
        m.register_forward_pre_hook(lambda _m, args, n=n: found.__setitem__(n, args[0].flatten(0, -2))) for n, m in wanted.items()
    ]
    _output(layer, x, call)
    for handle in handles:
        handle.remove()
    return found


def _gptq(grid: Grid, damp_ratio: float, sweeps: int) -> Solve:
    return lambda w, h: gptq.solve(w, h, grid, damp_ratio, sweeps).dequantize()


def _ggml(kind: str, damp_ratio: float, sweeps: int) -> Solve:
    return lambda w, h: decode(encode_with_feedback(w, kind, block_factor(h, damp_ratio), sweeps), kind)


def main(
    model: str = "hubquant/demo/data/model",
    calibration: Annotated[str, typer.Option()] = "prose-calib",
    text: Annotated[str, typer.Option()] = "prose-eval",
    max_tokens: Annotated[int, typer.Option()] = 8192,
) -> None:
    torch.set_num_threads(1)
    ablation = Ablation(model, calibration, text, max_tokens)
    print(f"{Path(model).name}: mean KL, {ablation.scored.protocol.name}, {ablation.scored.protocol.n_tokens:,} tokens of {text}")
    print("| type | step | mean KL |\n| --- | --- | --- |")
    for name, grid in (("W4g128 symmetric", Grid(4, 128, True)), ("W3g128 symmetric", Grid(3, 128, True))):
        rows = {
            "round to nearest": (lambda w, _, g=grid: round_to_nearest(w, g).dequantize(), WAYS[0]),
            "GPTQ, damped by 0.05": (_gptq(grid, 0.05, 0), WAYS[0]),
            "damped by 0.01": (_gptq(grid, 0.01, 0), WAYS[0]),
            f"and {gptq.SWEEPS} sweeps": (_gptq(grid, 0.01, gptq.SWEEPS), WAYS[0]),
            **{f"{way} (not built in)": (_gptq(grid, 0.01, gptq.SWEEPS), way) for way in WAYS[1:]},
        }
        for step, (solve, way) in rows.items():
            print(f"| {name} | {step} | {ablation.mean_kl(solve, way):.5f} |", flush=True)
    for kind in ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "Q4_0", "IQ3_S", "IQ2_S"):
        print(f"| {kind} | by importance | {ablation.mean_kl(lambda w, h, k=kind: decode(encode(w, k, h.diagonal()), k)):.5f} |")
        print(f"| {kind} | error feedback | {ablation.mean_kl(_ggml(kind, 0.01, 0)):.5f} |")
        if not kind.startswith("IQ"):
            print(f"| {kind} | and {gptq.SWEEPS} sweeps | {ablation.mean_kl(_ggml(kind, 0.01, gptq.SWEEPS)):.5f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
