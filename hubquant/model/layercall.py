"""One layer called with hidden states, with its own weights or others."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hubquant.errors import BadModel
from hubquant.model.relay import Call


class Weighted:
    """A layer that is called with other weights than its own."""

    def __init__(self, layer: nn.Module, weights: dict[str, Tensor]) -> None:
        self.layer, self.weights = layer, weights

    def __call__(self, hidden: Tensor, **call: Any) -> Any:
        return functional_call(self.layer, self.weights, (hidden,), call)


def apply_layer(layer: nn.Module | Weighted, hidden: Tensor, call: Call) -> Tensor:
    """One layer's output for [n, window, hidden]; layers that return tuples give their first element.

    Raises BadModel for a layer that cannot be run from what the model calls it with."""
    try:
        output = layer(hidden, **call)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in why:
            raise
        kind = type(layer.layer if isinstance(layer, Weighted) else layer).__name__
        raise BadModel(f"a layer ({kind}) cannot be run by itself: {why}") from error
    result: Tensor = output[0] if isinstance(output, tuple | list) else output
    return result
