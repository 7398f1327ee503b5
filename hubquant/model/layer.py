"""One decoder layer as a solver sees it: its tensors, its distinct inputs, and the statistics of each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from hubquant.calibrate.statistics import InputStatistics
from hubquant.model.topology import LayerInput

T = TypeVar("T")


class Pending(Mapping[str, T]):
    """Values by name, some with steps that are taken each time one is asked for: a layer that is folded takes no memory."""

    def __init__(self, given: Mapping[str, T]) -> None:
        self._given = given
        self._steps: dict[str, list[Callable[[T], T]]] = {}

    def then(self, name: str, step: Callable[[T], T]) -> None:
        self._steps.setdefault(name, []).append(step)

    def __getitem__(self, name: str) -> T:
        value = self._given[name]
        for step in self._steps.get(name, ()):
            value = step(value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


@dataclass(frozen=True)
class Layer:
    """A layer, or a part of its experts: `tensors` float32 by their names below `prefix` ("model.layers.3."); `statistics` by
    LayerInput.name.

    `following`: by input, weights of some experts that take its scale, in this part or another; `folds`: the scales that were
    folded, by input; `unfolded`: the layer before that.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    inputs: tuple[LayerInput, ...]
    statistics: Mapping[str, InputStatistics]
    following: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    folds: Mapping[str, Tensor] = field(default_factory=dict)
    unfolded: "Layer | None" = None

    def input_of(self, tensor: str) -> LayerInput | None:
        """The input that is multiplied with this tensor; None for norms, biases and the like."""
        linear = tensor.removesuffix(".weight")
        return next((i for i in self.inputs if linear in i.linears), None)

    def statistics_of(self, tensor: str) -> InputStatistics | None:
        read = self.input_of(tensor)
        return None if read is None else self.statistics[read.name]

    def output_error(self, tensor: str, losses: Tensor) -> float | None:
        """The relative error of a linear's output: losses [out], diag(ΔHΔᵀ) of what is stored as it is folded, by tr(WHWᵀ) as it
        was before, so that variants that fold otherwise compare. None of a linear that too few tokens reached."""
        base = self.unfolded or self
        statistics = base.statistics_of(tensor)
        if statistics is None or statistics.starved:
            return None
        divided = torch.ones_like(losses)
        for read in self.inputs:
            if read.name in self.folds and read.absorber is not None and f"{read.absorber.module}.weight" == tensor:
                divided[read.absorber.channels.to(losses.device)] = self.folds[read.name]
        return statistics.relative(float((losses * divided.square()).sum()), base.tensors[tensor])

    def folded(self, scales: Mapping[str, Tensor], dtype: torch.dtype, before: Mapping[str, Tensor] | None = None) -> "Layer":
        """The same function with the columns of each input's linears multiplied by s and its absorber divided by s.

        `scales`: s [in] by input name. `dtype` is what norms are stored in: the rounding of norm/s is taken up by the
        columns, so that folding adds no error of its own. `before`: the folds of the layer's earlier parts.
        """
        tensors, statistics, folds = Pending(self.tensors), Pending(self.statistics), dict(before or {})
        for read in self.inputs:
            if read.name in scales and read.absorber is not None:
                folds[read.name] = self._absorb(tensors, read, scales[read.name], dtype)
        for read in self.inputs:
            s = folds.get(read.follows or read.name)
            if s is not None:
                for linear in read.linears:
                    tensors.then(f"{linear}.weight", s.mul)
                statistics.then(read.name, partial(InputStatistics.scaled, s=s))
        return replace(self, tensors=tensors, statistics=statistics, folds=folds, unfolded=self)

    @staticmethod
    def _absorb(tensors: Pending[Tensor], read: LayerInput, s: Tensor, dtype: torch.dtype) -> Tensor:
        """Divide the absorber by s in `tensors`; returns the s that the columns must be multiplied by."""
        assert read.absorber is not None
        name, channels = read.absorber.module, read.absorber.channels.to(s.device)
        weight = tensors[f"{name}.weight"]
        if weight.dim() == 1:
            # a zero gain makes a dead channel, and a quotient that dtype rounds to zero would: both keep s = 1
            quotient = (weight / s).to(dtype).float()
            safe = (quotient != 0) & torch.isfinite(quotient)
            tensors.then(f"{name}.weight", partial(quotient.where, safe))
            s = torch.where(safe, weight / torch.where(safe, quotient, torch.ones_like(quotient)), torch.ones_like(s))
            if f"{name}.bias" in tensors:
                tensors.then(f"{name}.bias", partial(_divided, by=s))
            return s
        rows = torch.ones(weight.shape[0], device=s.device)
        rows[channels] = s
        tensors.then(f"{name}.weight", partial(_divided, by=rows[:, None]))
        if f"{name}.bias" in tensors:
            tensors.then(f"{name}.bias", partial(_divided, by=rows))
        return rows[channels]


def _divided(value: Tensor, by: Tensor) -> Tensor:
    return value / by
