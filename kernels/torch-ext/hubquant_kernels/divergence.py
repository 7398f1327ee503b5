"""Cross-entropy, KL divergence and top-1 agreement of two models' logits."""

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix


@torch.library.custom_op(add_op_namespace_prefix("divergence"), mutates_args=())
def divergence(base: Tensor, other: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per position: −log p_other(target), KL(p_base ‖ p_other) in nats, and whether both have the same most likely token.

    base, other [n, vocabulary] logits; targets [n] token ids. Returns float32 [n], float32 [n], bool [n]. A token that the
    base rules out (logit −inf) adds nothing to the divergence.
    """
    log_p = torch.log_softmax(base.float(), dim=-1)
    log_q = torch.log_softmax(other.float(), dim=-1)
    nll = -log_q.gather(1, targets[:, None])[:, 0]
    kl = (log_p.exp() * (log_p - log_q)).masked_fill_(log_p == -torch.inf, 0).sum(dim=-1)
    return nll, kl, base.argmax(dim=-1) == other.argmax(dim=-1)


@divergence.register_fake
def _(base: Tensor, other: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = base.shape[0]
    return base.new_empty(n, dtype=torch.float32), base.new_empty(n, dtype=torch.float32), base.new_empty(n, dtype=torch.bool)
