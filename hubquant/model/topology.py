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
from hubquant.model.experts import OTHER_EXPERTS, Experts, routers
from hubquant.model.layercall import apply_layer


@dataclass(frozen=True)
class Absorber:
    """The module before an input that can divide its output by s; `channels` [in]: which of its outputs feeds each channel."""

    module: str
    channels: Tensor


@dataclass(frozen=True)
class LayerInput:
    """One distinct input of a layer: the linears that read it, and what can absorb a scale on it (None: nothing can).

    `follows`: the input whose rows these are, of those tokens that are routed to an expert; it takes the scale of that one.
    """

    linears: tuple[str, ...]
    absorber: Absorber | None
    follows: str = ""

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

    The experts of one list are alike: the one that most tokens reach is probed, the others follow it. Raises BadModel if the layer
    holds fused experts that could not be taken apart, or that taken apart compute something else.
    """
    for name, parameter in layer.named_parameters():
        if parameter.dim() > 2 and not isinstance(layer.get_submodule(name.rpartition(".")[0]), nn.Conv1d):
            raise BadModel(f"layer weight {name} has {parameter.dim()} dimensions: {OTHER_EXPERTS}")
    experts = {n: m for n, m in layer.named_modules() if isinstance(m, Experts)}
    busiest = _busiest(layer, hidden, call, experts)
    choosing = {name.removesuffix(".weight") for name in routers(layer, experts)}
    readers = {
        n: m
        for n, m in layer.named_modules()
        if (isinstance(m, nn.Linear | Experts) or n in choosing)
        and all(n.startswith(f"{path}.{index}.") for path, index in busiest.items() if n.startswith(f"{path}."))
    }
    inputs = _probe(layer, _Probe(layer, readers, hidden, call), choosing)
    return [each for read in inputs for each in _for_all_experts(read, experts, busiest)]


def _probe(layer: nn.Module, probe: "_Probe", choosing: set[str]) -> list[LayerInput]:
    """`choosing`: the readers that are routers, which absorb nothing."""
    groups = probe.readers_by_input()
    norms = {
        n: m
        for n, m in layer.named_modules()
        if n and not isinstance(m, nn.Linear) and isinstance(getattr(m, "weight", None), nn.Parameter)
    }
    result: list[LayerInput] = []
    of_list: dict[str, str] = {}
    for group in groups:
        absorber = next((found for n in norms if (found := probe.norm_absorbs(n, group))), None)
        if absorber is None:
            others = [n for g in groups for n in g if n not in group and n not in choosing]
            absorber = next((found for n in others if (found := probe.linear_absorbs(n, group))), None)
        lists = [n for n in group if isinstance(probe.readers[n], Experts)]
        linears = tuple(n for n in group if n not in lists)
        if linears:
            of_list |= dict.fromkeys(lists, linears[0]) if absorber else {}
            path = next((p for p in of_list if group[0].startswith(f"{p}.")), None)
            first = path is not None and absorber is None and not linears[0].endswith("down_proj")
            result.append(LayerInput(linears, absorber, of_list[path] if path is not None and first else ""))
    return result


def _busiest(layer: nn.Module, hidden: Tensor, call: Mapping[str, Any], experts: Mapping[str, Experts]) -> dict[str, int]:
    """The expert of each list that most tokens reach, after proof that the experts do what the model's own do."""
    calls: dict[str, tuple[Any, ...]] = {}
    handles = [
        m.register_forward_pre_hook(lambda _m, args, kwargs, n=n: calls.__setitem__(n, (*args, *kwargs.values())), with_kwargs=True)
        for n, m in experts.items()
    ]
    try:
        if experts:
            apply_layer(layer, hidden, call)
    finally:
        for handle in handles:
            handle.remove()
    for name, (x, index, weights) in calls.items():
        experts[name].prove(x, index, weights)
    counts = {name: index.flatten().bincount(minlength=experts[name].fused.count) for name, (_, index, _) in calls.items()}
    return {name: int(count[: experts[name].fused.count].argmax()) for name, count in counts.items()}


def _for_all_experts(read: LayerInput, experts: Mapping[str, Experts], busiest: Mapping[str, int]) -> list[LayerInput]:
    """The input, or if it is one of a probed expert, the same of each expert of its list."""
    path = next((p for p, index in busiest.items() if read.name.startswith(f"{p}.{index}.")), None)
    if path is None:
        return [read]
    old = f"{path}.{busiest[path]}."

    def moved(name: str, index: int) -> str:
        return f"{path}.{index}.{name.removeprefix(old)}"

    result = []
    for index in range(experts[path].fused.count):
        absorber = read.absorber and Absorber(moved(read.absorber.module, index), read.absorber.channels)
        result.append(LayerInput(tuple(moved(n, index) for n in read.linears), absorber, read.follows))
    return result


class _Probe:
    """One layer run again and again on one window, with one module's output scaled.

    `readers`: its linears, routers and lists of experts, of these the linears of one expert.
    """

    def __init__(self, layer: nn.Module, readers: dict[str, nn.Module], hidden: Tensor, call: Mapping[str, Any]) -> None:
        self.layer, self.readers, self.call, self.hidden = layer, readers, call, hidden
        self.inputs, self.output = self._run()

    def readers_by_input(self) -> list[list[str]]:
        """Readers grouped by the rows that they read: views of one tensor are the same rows."""
        groups: dict[tuple[int, int, int], list[str]] = {}
        for name, x in self.inputs.items():
            groups.setdefault((x.data_ptr(), x.numel(), x.shape[-1]), []).append(name)
        return list(groups.values())

    def norm_absorbs(self, norm: str, linears: Sequence[str]) -> Absorber | None:
        """Whether the norm's parameters scale the input of these readers and, through nothing else, the layer."""
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
        module, before = self.readers[name], self.inputs[linears[0]]
        if not isinstance(module, nn.Linear):
            return None
        rows = module.out_features
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
            handles.append(self.readers[name].register_forward_hook(lambda _m, _a, out: out * factor.to(out)))
        for name, reader in self.readers.items():
            handles.append(reader.register_forward_pre_hook(lambda _m, args, n=name: inputs.__setitem__(n, args[0])))
        for name in halve:
            handles.append(self.readers[name].register_forward_pre_hook(lambda _m, args: (args[0] * 0.5, *args[1:])))
        try:
            output = apply_layer(self.layer, self.hidden, self.call)
        finally:
            for handle in handles:
                handle.remove()
        return inputs, output


def _repeated(rows: int, repeat: int, width: int) -> Tensor:
    """Rows in heads of `width`, each head repeated `repeat` times: how grouped-query attention spreads values."""
    return torch.arange(rows).view(-1, 1, width).expand(-1, repeat, -1).reshape(-1)
