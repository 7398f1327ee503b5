"""Σ xᵀx of calibration tokens."""

import torch
from case import Case, Run, with_tf32
from hubquant_kernels.hessian import accumulate_hessian

TOKENS = 4096


def cases() -> list[Case]:
    return [_case(n, dtype) for n in (2048, 4096, 14336) for dtype in (torch.bfloat16, torch.float16, torch.float32)]


def _case(n: int, dtype: torch.dtype) -> Case:
    def prepare() -> dict[str, Run]:
        x = torch.randn(TOKENS, n, device="cuda").to(dtype)
        hessian = torch.zeros(n, n, device="cuda")
        rows = x.float()
        return {
            "triton": lambda: accumulate_hessian(hessian, x),
            "definition": lambda: accumulate_hessian._init_fn(hessian, x),
            "torch float32": lambda: with_tf32(False, lambda: hessian.addmm_(rows.T, rows)),
            "torch TF32": lambda: with_tf32(True, lambda: hessian.addmm_(rows.T, rows)),
            "torch in its dtype": lambda: x.T @ x,
        }

    size = torch.empty(0, dtype=dtype).element_size()
    name = str(dtype).removeprefix("torch.")
    return Case("accumulate_hessian", f"{TOKENS} tokens x {n}, {name}", prepare, TOKENS * n * size + 8 * n * n, TOKENS * n * n)
