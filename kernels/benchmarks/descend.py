"""Codes asked again: one block of columns, and a sweep over a matrix."""

import torch
from case import Case, Run
from hubquant_kernels.descend import BLOCK, descend, descend_block

GROUP = 128


def cases() -> list[Case]:
    return [_case(4096, 4096), _case(14336, 4096), _case(4096, 14336)]


def _case(out: int, width: int) -> Case:
    def prepare() -> dict[str, Run]:
        x = torch.randn(2 * width, width, device="cuda")
        hessian, damp = x.T @ x / width, torch.full((width,), 0.01, device="cuda")
        codes = torch.randint(0, 16, (out, width), device="cuda").float()
        gradient = torch.randn(out, width, device="cuda")
        step = 0.5 + torch.rand(out, width // GROUP, device="cuda")
        first = slice(0, BLOCK)
        block = (codes[:, first], gradient[:, first], hessian[first, first], step[:, :1].expand(out, BLOCK), 15)
        return {
            "triton": lambda: descend(codes, gradient, hessian, damp, step, 15, 1),
            "triton, the codes of a block": lambda: descend_block(*block),
        }

    return Case("descend", f"a sweep over {out} x {width}", prepare, 16.0 * out * width + 4.0 * width**2, 2.0 * out * width**2)
