"""What a decoder layer is made of, found in its modules and by running it, not tabled.

Linears that read the same tensor share an input. A norm or a linear can absorb a per-channel scale of an input if
scaling its output scales that input by the same factors: this is tried with powers of two, which are exact in floating
point, so that the answer is a proof and not an estimate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hubquant.errors import BadModel
from hubquant.model.decoder import apply_layer


@dataclass(frozen=True)
class Absorber:
    """The module before an input that can divide its output by s; `channels` [in]: which of its outputs feeds each channel."""

    module: str
    channels: Tensor


@dataclass(frozen=True)
class LayerInput:
    """One distinct input of a layer: the linears that read it, and what can absorb a scale on it (None: nothing can)."""

    linears: tuple[str, ...]
    absorber: Absorber | None

    @property
    def name(self) -> str:
        return self.linears[0]


Structure = tuple[tuple[str, type, tuple[tuple[str, tuple[int, ...]], ...]], ...]


def structure(layer: nn.Module) -> Structure:
    """What two layers must have in common to have the same inputs and absorbers: modules, classes and shapes, in order."""

    def shapes(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((n, tuple(p.shape)) for n, p in module.named_parameters(recurse=False))

    return tuple((name, type(module), shapes(module)) for name, module in layer.named_modules())


@torch.no_grad()
def find_inputs(layer: nn.Module, hidden: Tensor, call: Mapping[str, Any]) -> list[LayerInput]:
    """The layer's distinct linear inputs, in the order they are read. `hidden` [1, window, hidden] is one calibration window.

    Raises BadModel if the layer holds weights of more than two dimensions (fused experts), which no linear reads.
    """
    for name, parameter in layer.named_parameters():
        if parameter.dim() > 2:
            raise BadModel(
                f"layer weight {name} has {parameter.dim()} dimensions (fused experts); mixtures of experts are not supported"
            )
    probe = _Probe(layer, hidden, call)
    groups = probe.linears_by_input()
    norms = {
        n: m for n, m in layer.named_modules() if n and not isinstance(m, nn.Linear) and getattr(m, "weight", None) is not None
    }
    result: list[LayerInput] = []
    for linears in groups:
        absorber = next((found for n in norms if (found := probe.norm_absorbs(n, linears))), None)
        if absorber is None:
            others = [n for group in groups for n in group if n not in linears]
            absorber = next((found for n in others if (found := probe.linear_absorbs(n, linears))), None)
        result.append(LayerInput(tuple(linears), absorber))
    return result


class _Probe:
    """One layer run again and again on one window, with one module's output scaled."""

    def __init__(self, layer: nn.Module, hidden: Tensor, call: Mapping[str, Any]) -> None:
        self.layer, self.call, self.hidden = layer, call, hidden
        self.linears = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
        self.inputs, self.output = self._run()

    def linears_by_input(self) -> list[list[str]]:
        """Linears grouped by the identity of the tensor that they read."""
        groups: dict[int, list[str]] = {}
        for name, x in self.inputs.items():
            groups.setdefault(id(x), []).append(name)
        return list(groups.values())

    def norm_absorbs(self, norm: str, linears: Sequence[str]) -> Absorber | None:
        """Whether the norm's parameters scale the input of these linears and, through nothing else, the layer."""
        module, width = self.layer.get_submodule(norm), self.inputs[linears[0]].shape[-1]
        if module.get_parameter("weight").shape != (width,):
            return None
        parameters = list(module.parameters(recurse=False))
        try:
            for parameter in parameters:
                parameter.mul_(2)
            doubles = self._doubles_only(linears)
        finally:
            for parameter in parameters:
                parameter.div_(2)
        return Absorber(norm, torch.arange(width)) if doubles else None

    def linear_absorbs(self, name: str, linears: Sequence[str]) -> Absorber | None:
        """Which output row of linear `name` each input channel follows, read off bit by bit from powers of two."""
        rows, before = self.linears[name].out_features, self.inputs[linears[0]]
        if before.shape[-1] % rows or not self._doubles_only(linears, scale=(name, torch.tensor(2.0))):
            return None
        index = torch.arange(rows)
        channels = torch.zeros(before.shape[-1], dtype=torch.int64)
        for bit in range((rows - 1).bit_length()):
            inputs, _ = self._run(scale=(name, 1.0 + ((index >> bit) & 1).float()))
            after = inputs[linears[0]]
            doubled = (after == 2 * before).flatten(0, -2).all(dim=0)
            same = (after == before).flatten(0, -2).all(dim=0)
            if not torch.all(doubled | same):
                return None
            channels |= (doubled & ~same).to(channels.device, torch.int64) << bit
        dead = (before == 0).flatten(0, -2).all(dim=0).cpu()
        if bool(dead.any()):
            return None if bool(dead.all()) else self._fill_dead(name, channels, dead, rows)
        return Absorber(name, channels) if int(channels.max()) < rows else None

    def _doubles_only(self, linears: Sequence[str], scale: tuple[str, Tensor] | None = None) -> bool:
        """Whether the layer, or with `scale`, doubles exactly the input of these linears, and nothing once they halve it."""
        inputs, _ = self._run(scale=scale)
        if not all(torch.equal(inputs[n], 2 * self.inputs[n]) for n in linears):
            return False
        undone, output = self._run(scale=scale, halve=linears)
        others = set(self.inputs) - set(linears)
        return torch.equal(output, self.output) and all(torch.equal(undone[n], self.inputs[n]) for n in others)

    def _fill_dead(self, name: str, channels: Tensor, dead: Tensor, rows: int) -> Absorber | None:
        """Channels that are zero on the probe's tokens tell nothing: they follow the pattern of the others, if that is regular."""
        n = channels.numel()
        repeat = n // rows
        width = next(
            (w for w in range(1, rows + 1) if rows % w == 0 and self._fits(_repeated(rows, repeat, w), channels, dead)), None
        )
        return Absorber(name, _repeated(rows, repeat, width)) if width is not None else None

    @staticmethod
    def _fits(pattern: Tensor, channels: Tensor, dead: Tensor) -> bool:
        return bool(torch.equal(pattern[~dead], channels[~dead]))

    def _run(self, scale: tuple[str, Tensor] | None = None, halve: Sequence[str] = ()) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of every linear and the layer's output; `scale` multiplies one linear's output, `halve` inputs of linears."""
        inputs: dict[str, Tensor] = {}
        handles = []
        if scale is not None:
            name, factor = scale
            handles.append(self.linears[name].register_forward_hook(lambda _m, _a, out: out * factor.to(out.device)))
        for name, linear in self.linears.items():
            handles.append(linear.register_forward_pre_hook(lambda _m, args, n=name: inputs.__setitem__(n, args[0])))
        for name in halve:
            handles.append(self.linears[name].register_forward_pre_hook(lambda _m, args: (args[0] * 0.5, *args[1:])))
        try:
            output = apply_layer(self.layer, self.hidden, self.call)
        finally:
            for handle in handles:
                handle.remove()
        return inputs, output


def _repeated(rows: int, repeat: int, width: int) -> Tensor:
    """Rows in heads of `width`, each head repeated `repeat` times: how grouped-query attention spreads values."""
    return torch.arange(rows).view(-1, 1, width).expand(-1, repeat, -1).reshape(-1)
