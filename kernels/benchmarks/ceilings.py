"""What the GPU does at best with torch's own kernels: a copy, and large products of each type."""

import torch
from case import Case, Run, with_tf32

COPIED = 1 << 30  # bytes
N = 8192


def cases() -> list[Case]:
    products = [_product(name, dtype, tf32) for name, dtype, tf32 in PRODUCTS]
    return [Case("copy", "1 GiB", _copy, 2.0 * COPIED), *products]


PRODUCTS = (
    ("bfloat16", torch.bfloat16, False),
    ("float16", torch.float16, False),
    ("float32 by TF32", torch.float32, True),
    ("float32", torch.float32, False),
)


def _copy() -> dict[str, Run]:
    source = torch.randint(0, 256, (COPIED,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return {"torch": lambda: target.copy_(source)}


def _product(name: str, dtype: torch.dtype, tf32: bool) -> Case:
    def prepare() -> dict[str, Run]:
        a, b = (torch.randn(N, N, device="cuda").to(dtype) for _ in range(2))
        return {"torch": lambda: with_tf32(tf32, lambda: a @ b)}

    return Case(
        "product", f"{name}, {N} x {N} x {N}", prepare, 3.0 * N * N * torch.empty(0, dtype=dtype).element_size(), 2.0 * N**3
    )
