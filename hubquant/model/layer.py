"""One decoder layer as a solver sees it: its tensors, its distinct inputs, and the statistics of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hubquant.calibrate.statistics import InputStatistics
from hubquant.model.topology import LayerInput


@dataclass(frozen=True)
class Layer:
    """A layer, or a part of its experts: `tensors` float32 by their names below `prefix` ("model.layers.3."); `statistics` by
    LayerInput.name.

    `following`: by input, weights of some experts that take its scale, in this part or another; `folds`: the scales that were
    folded, by input.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    inputs: tuple[LayerInput, ...]
    statistics: Mapping[str, InputStatistics]
    following: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    folds: Mapping[str, Tensor] = field(default_factory=dict)

    def input_of(self, tensor: str) -> LayerInput | None:
        """The input that is multiplied with this tensor; None for norms, biases and the like."""
        linear = tensor.removesuffix(".weight")
        return next((i for i in self.inputs if linear in i.linears), None)

    def statistics_of(self, tensor: str) -> InputStatistics | None:
        read = self.input_of(tensor)
        return None if read is None else self.statistics[read.name]

    def folded(self, scales: Mapping[str, Tensor], dtype: torch.dtype, before: Mapping[str, Tensor] | None = None) -> "Layer":
        """The same function with the columns of each input's linears multiplied by s and its absorber divided by s.

        `scales`: s [in] by input name. `dtype` is what norms are stored in: the rounding of norm/s is taken up by the
        columns, so that folding adds no error of its own. `before`: the folds of the layer's earlier parts.
        """
        tensors, statistics, folds = dict(self.tensors), dict(self.statistics), dict(before or {})
        for read in self.inputs:
            if read.name in scales and read.absorber is not None:
                folds[read.name] = self._absorb(tensors, read, scales[read.name], dtype)
        for read in self.inputs:
            s = folds.get(read.follows or read.name)
            if s is not None:
                for linear in read.linears:
                    tensors[f"{linear}.weight"] = tensors[f"{linear}.weight"] * s
                statistics[read.name] = statistics[read.name].scaled(s)
        return replace(self, tensors=tensors, statistics=statistics, folds=folds)

    @staticmethod
    def _absorb(tensors: dict[str, Tensor], read: LayerInput, s: Tensor, dtype: torch.dtype) -> Tensor:
        """Divide the absorber by s in place in `tensors`; returns the s that the columns must be multiplied by."""
        assert read.absorber is not None
        name, channels = read.absorber.module, read.absorber.channels.to(s.device)
        weight = tensors[f"{name}.weight"]
        if weight.dim() == 1:
            # a zero gain makes a dead channel, and a quotient that dtype rounds to zero would: both keep s = 1
            quotient = (weight / s).to(dtype).float()
            safe = (quotient != 0) & torch.isfinite(quotient)
            tensors[f"{name}.weight"] = torch.where(safe, quotient, weight)
            s = torch.where(safe, weight / torch.where(safe, quotient, torch.ones_like(quotient)), torch.ones_like(s))
            if f"{name}.bias" in tensors:
                tensors[f"{name}.bias"] = tensors[f"{name}.bias"] / s
            return s
        rows = torch.ones(weight.shape[0], device=s.device)
        rows[channels] = s
        tensors[f"{name}.weight"] = weight / rows[:, None]
        if f"{name}.bias" in tensors:
            tensors[f"{name}.bias"] = tensors[f"{name}.bias"] / rows
        return rows[channels]
