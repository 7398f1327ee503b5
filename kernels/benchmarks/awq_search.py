"""The losses of several of AWQ's scales for one linear."""

import torch
from case import Case, Run
from hubquant_kernels.awq_search import awq_losses

SCALES = 5


def cases() -> list[Case]:
    return [_case(out, width) for out, width in ((4096, 4096), (14336, 4096), (4096, 14336))]


def _case(out: int, width: int) -> Case:
    def prepare() -> dict[str, Run]:
        weight, x = 0.02 * torch.randn(out, width, device="cuda"), torch.randn(2048, width, device="cuda")
        arguments = (weight, x.T @ x, torch.rand(SCALES, width, device="cuda") + 0.5, 4, 128, False)
        return {"triton": lambda: awq_losses(*arguments), "definition": lambda: awq_losses._init_fn(*arguments)}

    return Case(
        "awq_losses", f"{SCALES} scales of {out} x {width}", prepare, 4.0 * SCALES * out * width, 2.0 * SCALES * out * width**2
    )
