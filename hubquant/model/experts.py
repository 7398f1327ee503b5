"""Fused experts taken apart: every expert as its own linears, so that the pass sees what any other linear is.

transformers keeps the experts of a layer in three-dimensional parameters. What their rows mean is said by the contract of
transformers' experts interface (integrations/moe.py: is_transposed, is_concatenated, has_gate, has_bias, `_apply_gate`), which
all its mixtures but a few follow, so no table of models is needed; `Experts.prove` compares the result with the model's own
forward on calibration tokens.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hubquant.errors import BadModel

_LARGE = 2**20
OTHER_EXPERTS = "fused experts that do not follow transformers' experts interface are not supported"
LINEARS = ("gate_proj", "up_proj", "down_proj")


class NoMemoryForExperts(TorchFunctionMode):
    """While models are built without weights: stacks of matrices start on meta too. accelerate's init_empty_weights lets them be
    allocated first, and one layer's experts may ask for more than the machine has; no buffer is that large."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones):
            size = args[0] if args and isinstance(args[0], list | tuple | torch.Size) else args
            if len(size) > 2 and prod(size) >= _LARGE:
                kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


class Expert(nn.Module):
    """The linears of one expert, `gate_proj` only where the model has a gate."""

    def __init__(self, fused: "Fused") -> None:
        super().__init__()
        for linear in fused.linears:
            out, width = fused.shape(linear)
            self.add_module(linear, nn.Linear(width, out, bias=fused.has_bias, device="meta", dtype=fused.dtype))

    def forward(self, x: Tensor, fused: "Fused") -> Tensor:
        gate = self.get_submodule("gate_proj")(x) if fused.has_gate else None
        inner = fused.activate(gate, self.get_submodule("up_proj")(x))
        out: Tensor = self.get_submodule("down_proj")(inner)
        return out


class Experts(nn.Module):
    """Takes the place of a fused experts module: the children "0", "1", … are its experts.

    `every_token`: run each expert over all tokens, so that whoever observes its linears sees them all; what the router did not
    send to it is not added to the output. `sent`: while an expert runs, the numbers of the tokens that it is given, None for all.
    """

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.fused = Fused(fused)
        self.every_token = False
        self.sent: Tensor | None = None
        for index in range(self.fused.count):
            self.add_module(str(index), Expert(self.fused))
        if getattr(fused, "has_post_expert_norm", False):
            self.add_module("post_expert_norm", fused.get_submodule("post_expert_norm"))

    def experts(self) -> Iterator[Expert]:
        return (m for m in self.children() if isinstance(m, Expert))

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`hidden` [tokens, hidden], `top_k_index` and `top_k_weights` [tokens, k] → [tokens, hidden]."""
        result = torch.zeros_like(hidden)
        norm = self._modules.get("post_expert_norm")
        for index, expert in enumerate(self.experts()):
            token, slot = torch.where(top_k_index == index)
            self.sent = None if self.every_token else token
            if self.every_token:
                out = expert(hidden, self.fused)[token]
            elif token.numel():
                out = expert(hidden[token], self.fused)
            else:
                continue
            out = out if norm is None else norm(out)
            result.index_add_(0, token, (out * top_k_weights[token, slot, None]).to(result.dtype))
        self.sent = None
        return result

    @torch.no_grad()
    def prove(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> None:
        """Raises BadModel unless the model's own experts give the same output for the same weights, up to rounding.

        The fused copy of the weights lives for this one call.
        """
        expected = self.fused.run(self, hidden, top_k_index, top_k_weights)
        found = self(hidden, top_k_index, top_k_weights)
        # two orders of summation of two products in a row, each a sum of `width` terms
        width = sum(self.fused.shape(linear)[1] for linear in ("up_proj", "down_proj"))
        allowed = 4 * width * torch.finfo(hidden.dtype).eps * float(expected.abs().max())
        if not float((found - expected).abs().max()) <= allowed:
            raise BadModel(
                f"the experts of {type(self.fused.module).__name__} compute something else than their linears one by one; "
                "this mixture of experts is not supported"
            )


class Fused:
    """The layout of a fused experts module: which part of which parameter each expert's linear is. Its weights stay on meta."""

    def __init__(self, module: Any) -> None:
        self.module: Any = module  # of any class that follows the interface
        self.has_gate, self.has_bias = bool(module.has_gate), bool(module.has_bias)
        self.transposed, self.concatenated = bool(module.is_transposed), bool(module.is_concatenated)
        down = module.get_parameter("down_proj")
        self.count, self.dtype = down.shape[0], down.dtype
        self.hidden, self.inner = (down.shape[2], down.shape[1]) if self.transposed else (down.shape[1], down.shape[2])

    @property
    def linears(self) -> tuple[str, ...]:
        return LINEARS if self.has_gate else LINEARS[1:]

    def shape(self, linear: str) -> tuple[int, int]:
        """[out, in] of one expert's linear."""
        return (self.hidden, self.inner) if linear == "down_proj" else (self.inner, self.hidden)

    def parameter(self, tensor: str) -> str:
        """The fused parameter that holds `tensor` ("up_proj.weight", "down_proj.bias") of every expert."""
        linear, _, kind = tensor.partition(".")
        name = "gate_up_proj" if self.has_gate and linear != "down_proj" else linear
        return f"{name}_bias" if kind == "bias" else name

    def part(self, tensor: str, entry: Tensor) -> Tensor:
        """The view of one expert's entry of `parameter(tensor)` that is `tensor`: [out, in], or [out] for a bias."""
        linear, _, kind = tensor.partition(".")
        rows = entry.T if self.transposed and kind == "weight" else entry
        if linear == "down_proj" or not self.has_gate:
            return rows
        second = int(linear == "up_proj")
        return rows[second * self.inner :][: self.inner] if self.concatenated else rows[second::2]

    def activate(self, gate: Tensor | None, up: Tensor) -> Tensor:
        """What the model does between the two products, by its own code."""
        if gate is None:
            result: Tensor = self.module.act_fn(up)
        else:
            joined = torch.cat([gate, up], dim=-1) if self.concatenated else torch.stack([gate, up], dim=-1).flatten(-2)
            result = self.module._apply_gate(joined)
        return result

    def run(self, experts: Experts, *inputs: Tensor) -> Tensor:
        """The model's own forward with the weights of `experts`."""
        parameters = dict(self.module.named_parameters(recurse=False))
        device = inputs[0].device
        real = {n: torch.empty(p.shape, dtype=p.dtype, device=device) for n, p in parameters.items()}
        for index, expert in enumerate(experts.experts()):
            for name, value in expert.named_parameters():
                self.part(name, real[self.parameter(name)][index]).copy_(value)
        try:
            for name in real:
                self.module._parameters[name] = nn.Parameter(real[name], requires_grad=False)
            output: Tensor = self.module(*inputs)
        finally:
            self.module._parameters.update(parameters)
        return output


def take_apart(model: nn.Module) -> dict[str, Experts]:
    """Replace every fused experts module that follows the experts interface; the new modules by their names."""
    fused = {name: module for name, module in model.named_modules() if is_fused(module)}
    found = {}
    for name, module in fused.items():
        experts = Experts(module).eval()
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, experts)
        found[name] = experts
    return found


def routers(model: nn.Module, experts: dict[str, Experts]) -> set[str]:
    """Weights of what stands beside experts and has one output for each: they choose, and are left in 16 bit."""
    found = set()
    for name, module in experts.items():
        block = name.rpartition(".")[0]
        for child, sibling in model.get_submodule(block).named_children():
            for parameter, value in sibling.named_parameters(recurse=False):
                if value.dim() == 2 and value.shape[0] == module.fused.count:
                    found.add(f"{block}.{child}.{parameter}")
    return found


def is_fused(module: nn.Module) -> bool:
    names = dict(module.named_parameters(recurse=False))
    return hasattr(module, "_apply_gate") and hasattr(module, "is_transposed") and "down_proj" in names
