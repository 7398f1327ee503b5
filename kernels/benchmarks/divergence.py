"""Two models' divergence over a large vocabulary: from logits, and from hidden states and heads."""

import torch
from case import Case, Run
from hubquant_kernels.divergence import divergence, divergence_of_heads

VOCABULARY = 151936


def cases() -> list[Case]:
    return [_logits(512), *(_heads(512, width) for width in (1024, 4096))]


def _logits(n: int) -> Case:
    def prepare() -> dict[str, Run]:
        base, other = (torch.randn(n, VOCABULARY, device="cuda") for _ in range(2))
        targets = torch.randint(0, VOCABULARY, (n,), device="cuda")
        return {
            "triton": lambda: divergence(base, other, targets),
            "definition": lambda: divergence._init_fn(base, other, targets),
        }

    return Case("divergence", f"{n} x {VOCABULARY}, float32", prepare, 8.0 * n * VOCABULARY)


def _heads(n: int, width: int) -> Case:
    def prepare() -> dict[str, Run]:
        hidden, theirs = (torch.randn(n, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        head, their_head = (torch.randn(VOCABULARY, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        arguments = (hidden, head, theirs, their_head, torch.randint(0, VOCABULARY, (n,), device="cuda"))
        return {
            "triton": lambda: divergence_of_heads(*arguments),
            "logits in bfloat16": lambda: divergence(hidden @ head.T, theirs @ their_head.T, arguments[4]),
        }

    size, work = 4.0 * VOCABULARY * width, 4.0 * n * VOCABULARY * width
    return Case("divergence_of_heads", f"{n} x {width} x {VOCABULARY}, bfloat16", prepare, size, work)
