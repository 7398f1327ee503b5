"""GPT-2's Conv1D is a linear that keeps its weight as [in, out]. Inside the house it is a linear like any other."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def make_linears(model: nn.Module) -> set[str]:
    """Put an empty nn.Linear in the place of every Conv1D; the names of their weights, which checkpoints hold transposed."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Conv1D)}
    for name, module in found.items():
        with torch.device("meta"):
            linear = nn.Linear(module.nx, module.nf, bias=module.bias is not None, dtype=module.weight.dtype)
        model.set_submodule(name, linear.eval())
    return {f"{name}.weight" for name in found}
