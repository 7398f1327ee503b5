"""Activations times weights in ggml's blocks, beside torch with the weight in fp16."""

import torch
from case import Case, Run, random_blocks
from hubquant_kernels.ggml_matmul import ggml_matmul
from hubquant_kernels.ggml_types import GGML_TYPES

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))  # of Llama 3 8B


def cases() -> list[Case]:
    few = [_case(name, 1, *shape) for name in ("Q4_0", "Q4_K", "Q6_K", "Q8_0") for shape in SHAPES]
    return few + [_case("Q4_K", m, *SHAPES[1]) for m in (2, 4, 8, 64, 1024)]


def _case(name: str, m: int, n: int, k: int) -> Case:
    kind = GGML_TYPES[name]

    def prepare() -> dict[str, Run]:
        x, dense = torch.randn(m, k, device="cuda", dtype=torch.float16), torch.randn(n, k, device="cuda", dtype=torch.float16)
        data = random_blocks(n, k // kind.block_size * kind.type_size)
        return {
            "triton": lambda: ggml_matmul(x, data, name),
            "definition": lambda: ggml_matmul._init_fn(x, data, name),
            "torch fp16": lambda: x @ dense.T,
        }

    size = n * k * kind.bits_per_weight / 8 + 2 * m * (n + k)
    return Case("ggml_matmul", f"{name}, {m} x {k} times {n}", prepare, size, 2.0 * m * n * k)
