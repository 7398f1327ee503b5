"""Stand-ins for the decoder layers while the rest of the model runs: they note how the model calls each layer, and answer in
its place. What a layer cannot be run alone from is declined here, with the reason."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hubquant.errors import BadModel

Call = Mapping[str, Any]


class Relays:
    """One relay per layer of `layers`, which is the model's module `name`.

    `run_layer(index, hidden, call)` runs a layer with its weights: asked once per class of layers whose outputs cannot be
    told from the signature.
    """

    def __init__(self, model: nn.Module, name: str, layers: nn.ModuleList, run_layer: Callable[[int, Tensor, Call], Any]) -> None:
        self._model, self._name, self._layers, self._run_layer = model, name, layers, run_layer
        self._relays = nn.ModuleList(_Relay(self, index, layer) for index, layer in enumerate(layers))
        self._calls: list[list[Call]] = [[] for _ in layers]
        self._besides: dict[type, tuple[Any, ...] | None] = {}
        self._noting = False
        self._reached = 0
        self._answer: Tensor | None = None
        self.first: Tensor | None = None

    def forget(self) -> None:
        """Before other windows are noted."""
        for calls in self._calls:
            calls.clear()

    def call(self, index: int, window: int) -> Call:
        """The keyword arguments with which the model called this layer for this window."""
        return self._calls[index][window]

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Calls are noted, and `first` is what the first layer is given. For one window.

        Raises BadModel if the layers are not called once each in order, with nothing that has weights between them.
        """
        self._noting, self._reached = True, 0
        handles = [
            module.register_forward_pre_hook(lambda *_, n=name: self._outside(n))
            for name, module in self._model.named_modules()
            if not name.startswith(self._name + ".") and next(module.parameters(recurse=False), None) is not None
        ]
        try:
            with self._standing(self._relays):
                yield
        finally:
            self._noting = False
            for handle in handles:
                handle.remove()
        if self._reached != len(self._layers):
            raise BadModel(f"the model runs {self._reached} of its {len(self._layers)} layers; it cannot be run layer by layer")

    @contextmanager
    def answering(self, hidden: Tensor) -> Iterator[None]:
        """The last layer's output is `hidden`, whatever goes in."""
        self._answer = hidden
        try:
            with self._standing(self._relays):
                yield
        finally:
            self._answer = None

    @contextmanager
    def _standing(self, modules: nn.ModuleList) -> Iterator[None]:
        """These modules where the model keeps its layers; what stood there before, afterwards."""
        parent_name, _, attribute = self._name.rpartition(".")
        parent = self._model.get_submodule(parent_name)
        before = getattr(parent, attribute)
        setattr(parent, attribute, modules)
        try:
            yield
        finally:
            setattr(parent, attribute, before)

    def reply(self, index: int, hidden: Tensor, call: Call) -> Any:
        """What the model is given in place of the layer's output, in the form that the layer would give it."""
        layer = self._layers[index]
        if self._noting:
            self._note(index, hidden, call)
            if type(layer) not in self._besides:
                self._besides[type(layer)] = self._learn(index, hidden, call)
        result = self._answer if self._answer is not None and index == len(self._layers) - 1 else hidden
        besides = self._besides.get(type(layer))
        return result if besides is None else (result, *besides)

    def _note(self, index: int, hidden: Tensor, call: Call) -> None:
        if index != self._reached:
            raise BadModel(f"the model runs layer {index} after layer {self._reached - 1}; it cannot be run layer by layer")
        for name, value in call.items():
            if any(value is b for besides in self._besides.values() for b in besides or () if b is not None):
                raise BadModel(f"its layers hand each other {name} beside the hidden states; it cannot be run layer by layer")
        if index == 0:
            self.first = hidden.detach().clone()
        calls = self._calls[index]
        calls.append(calls[0] if calls and _same(calls[0], call) else call)
        self._reached += 1

    def _learn(self, index: int, hidden: Tensor, call: Call) -> tuple[Any, ...] | None:
        """What layers of this class return beside the hidden states; None if those come alone."""
        if inspect.signature(self._layers[index].forward).return_annotation in (Tensor, "Tensor", "torch.Tensor"):
            return None
        with self._standing(self._layers):
            output = self._run_layer(index, hidden.clone(), call)
        return tuple(output[1:]) if isinstance(output, tuple | list) else None

    def _outside(self, name: str) -> None:
        if 0 < self._reached < len(self._layers):
            raise BadModel(f"{name} runs between the decoder layers; the model cannot be run layer by layer")


class _Relay(nn.Module):
    def __init__(self, relays: Relays, index: int, layer: nn.Module) -> None:
        super().__init__()
        self._kept = (relays, layer)  # in a tuple, so that the layer is not registered as a submodule
        self._index = index

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._kept[1], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        relays, layer = self._kept
        names = list(inspect.signature(layer.forward).parameters)
        call = dict(zip(names, args, strict=False)) | kwargs
        return relays.reply(self._index, call.pop(names[0]), call)


def _same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal, tensors by their values."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (isinstance(a, int | float | str) and a == b)
