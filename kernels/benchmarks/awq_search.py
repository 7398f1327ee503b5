"""The error of a linear's output, and that of each of several of AWQ's scales."""

import torch
from case import Case, Run, with_tf32
from hubquant_kernels.awq_search import awq_losses, quadratic_form, rounding_error

SCALES = 5


def cases() -> list[Case]:
    shapes = ((4096, 4096), (14336, 4096), (4096, 14336))
    return [*(_losses(*shape) for shape in shapes), *(_form(*shape) for shape in shapes)]


def _form(out: int, width: int) -> Case:
    def prepare() -> dict[str, Run]:
        delta, x = torch.randn(out, width, device="cuda"), torch.randn(2048, width, device="cuda")
        hessian = x.T @ x
        return {
            "triton": lambda: quadratic_form(delta, hessian),
            "definition": lambda: quadratic_form._init_fn(delta, hessian),
            "torch TF32": lambda: with_tf32(True, lambda: quadratic_form._init_fn(delta, hessian)),
        }

    return Case("quadratic_form", f"{out} x {width}", prepare, 4.0 * width * (out + width), 2.0 * out * width**2)


def _losses(out: int, width: int) -> Case:
    def prepare() -> dict[str, Run]:
        weight, x = 0.02 * torch.randn(out, width, device="cuda"), torch.randn(2048, width, device="cuda")
        hessian, scales = x.T @ x, torch.rand(SCALES, width, device="cuda") + 0.5

        def plainly() -> object:
            return [quadratic_form._init_fn(rounding_error(weight, s, 4, 128, False), hessian) for s in scales]

        return {"triton": lambda: awq_losses(weight, hessian, scales, 4, 128, False), "definition": plainly}

    return Case(
        "awq_losses", f"{SCALES} scales of {out} x {width}", prepare, 4.0 * SCALES * out * width, 2.0 * SCALES * out * width**2
    )
