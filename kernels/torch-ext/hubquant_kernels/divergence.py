"""Cross-entropy, KL divergence and top-1 agreement of two models' logits."""

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix
from .dispatch import on_gpu


@torch.library.custom_op(add_op_namespace_prefix("divergence"), mutates_args=())
def divergence(base: Tensor, other: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per position: −log p_other(target), KL(p_base ‖ p_other) in nats, and whether both have the same most likely token.

    base, other [n, vocabulary] logits; targets [n] token ids. Returns float32 [n], float32 [n], bool [n]. A token that the
    base rules out (logit −inf) adds nothing to the divergence, which is never negative: what rounding takes below 0 is 0.
    """
    log_p = torch.log_softmax(base.float(), dim=-1)
    log_q = torch.log_softmax(other.float(), dim=-1)
    nll = -log_q.gather(1, targets[:, None])[:, 0]
    kl = (log_p.exp() * (log_p - log_q)).masked_fill_(log_p == -torch.inf, 0).sum(dim=-1).clamp_min_(0)
    return nll, kl, base.argmax(dim=-1) == other.argmax(dim=-1)


@divergence.register_fake
def _(base: Tensor, other: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = base.shape[0]
    return base.new_empty(n, dtype=torch.float32), base.new_empty(n, dtype=torch.float32), base.new_empty(n, dtype=torch.bool)


@torch.library.custom_op(add_op_namespace_prefix("divergence_of_heads"), mutates_args=())
def divergence_of_heads(
    hidden_base: Tensor, head_base: Tensor, hidden_other: Tensor, head_other: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`divergence` of the logits hidden @ headᵀ, products in float32, for hidden [n, width] and head [vocabulary, width] of each.

    On a GPU the logits are never in memory: of a vocabulary of 150 000, a window of 2048 positions has 1.2 GB of them twice.
    """
    return divergence(hidden_base.float() @ head_base.float().T, hidden_other.float() @ head_other.float().T, targets)


@divergence_of_heads.register_fake
def _(
    hidden_base: Tensor, head_base: Tensor, hidden_other: Tensor, head_other: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n = hidden_base.shape[0]
    nll, kl = (hidden_base.new_empty(n, dtype=torch.float32) for _ in range(2))
    return nll, kl, hidden_base.new_empty(n, dtype=torch.bool)


def _in_half(*tensors: Tensor) -> bool:
    """Whether all are of one half-precision type: products of float32 would not run on tensor cores as they are."""
    return len({t.dtype for t in tensors[:4]}) == 1 and tensors[0].dtype in (torch.float16, torch.bfloat16)


on_gpu(divergence, "divergence")
on_gpu(divergence_of_heads, "divergence", accepts=_in_half)
