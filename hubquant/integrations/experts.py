"""Mixtures of experts that stay packed: transformers fuses the experts of a layer, here each keeps its own packed linears."""

import re
from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightRenaming

from hubquant.errors import BadModel
from hubquant.integrations.stored import aliases
from hubquant.model.experts import Experts, is_fused
from hubquant.model.naming import StoredNames

SUFFIXES = "qweight|qzeros|scales|g_idx|bias"


class PackedExperts(Experts):
    """Experts whose linears are replaced by packed ones."""

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`hidden` [tokens, hidden], `top_k_index` and `top_k_weights` [tokens, k] → [tokens, hidden].

        Where a graph is compiled, every expert runs over all tokens: how many tokens it gets is not known there.
        """
        if not torch.compiler.is_compiling():
            return super().forward(hidden, top_k_index, top_k_weights)
        norm = self._modules.get("post_expert_norm")
        result = torch.zeros_like(hidden)
        for index, expert in enumerate(self.experts()):
            out = expert(hidden, self.fused)
            out = out if norm is None else norm(out)
            share = (top_k_weights * (top_k_index == index)).sum(dim=-1, keepdim=True)
            result = result + (out * share).to(result.dtype)
        return result


def unfuse(model: PreTrainedModel, packed: set[str], renamed: Collection[str], names: StoredNames) -> list[str]:
    """Take the experts apart that the files hold packed; `names` learns what their linears are called there. Returns their names.

    `renamed`: modules that transformers' renamings lead packed linears to. Raises BadModel if only some linears of a list of
    experts are packed.
    """
    found = []
    for name, module in [(n, m) for n, m in model.named_modules() if is_fused(m)]:
        experts = PackedExperts(module)
        with torch.device("cpu"):  # where from_pretrained builds models, tensors are without values
            names.learn(name, experts)
        linears = [n for n, m in experts.named_modules(prefix=name) if isinstance(m, nn.Linear)]
        stored = {n: names.stored(f"{n}.weight").removesuffix(".weight") for n in linears}
        dense = [s for n, s in stored.items() if n not in renamed and packed.isdisjoint(aliases(model, s))]
        if len(dense) == len(linears):
            continue
        if dense:
            raise BadModel(f"the files hold some experts of {name} packed, but not {dense[0]}: all or none must be")
        model.set_submodule(name, experts)
        found.append(name)
    return found


def renamings(experts: Collection[str], names: StoredNames) -> list[WeightRenaming]:
    """How transformers gets from the files' names of packed experts (Mixtral: `experts.3.w1.qweight`) to the modules' names."""
    pairs = set()
    for name in experts:
        owner = name.rpartition(".")[2]
        for linear in ("gate_proj", "up_proj", "down_proj"):
            stored = names.stored(f"{name}.0.{linear}.weight").removesuffix(".weight").rpartition(".")[2]
            if stored != linear:
                pairs.add((owner, stored, linear))
    return [
        WeightRenaming(rf"{re.escape(owner)}\.(\d+)\.{re.escape(stored)}\.(?={SUFFIXES})", rf"{owner}.\1.{linear}.")
        for owner, stored, linear in sorted(pairs)
    ]
