"""W4A16 products in GPTQ's and AWQ's layouts, beside torch with the weight in fp16."""

import torch
from case import Case, Run
from hubquant_kernels.int4_matmul import matmul_awq, matmul_gptq
from torch import Tensor

# of Llama 2 7B, and of Llama 3 8B
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096), (4096, 14336))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
GROUP = 128


def cases() -> list[Case]:
    few = [_case(layout, m, *shape) for layout in ("gptq", "awq") for shape in SHAPES for m in ROWS]
    return few + [_case(layout, 1024, *SHAPES[-2]) for layout in ("gptq", "awq")]


def _case(layout: str, m: int, n: int, k: int) -> Case:
    def prepare() -> dict[str, Run]:
        x, dense = torch.randn(m, k, device="cuda", dtype=torch.float16), torch.randn(n, k, device="cuda", dtype=torch.float16)
        scales = torch.rand(k // GROUP, n, device="cuda").half()
        qzeros = _words(k // GROUP, n // 8)
        if layout == "gptq":
            qweight = _words(k // 8, n)
            runs: dict[str, Run] = {
                "triton": lambda: matmul_gptq(x, qweight, qzeros, scales, None, 4, 1),
                "definition": lambda: matmul_gptq._init_fn(x, qweight, qzeros, scales, None, 4, 1),
            }
        else:
            qweight = _words(k, n // 8)
            runs = {
                "triton": lambda: matmul_awq(x, qweight, qzeros, scales),
                "definition": lambda: matmul_awq._init_fn(x, qweight, qzeros, scales),
            }
        if m > 1:  # it decodes the weight first: how many rows there are changes little
            del runs["definition"]
        return runs | {"torch fp16": lambda: x @ dense.T}

    size = n * k * (0.5 + 2.5 / GROUP) + 2 * m * (n + k)
    return Case(f"matmul_{layout}", f"{m} x {k} times {n}", prepare, size, 2.0 * m * n * k)


def _words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, device="cuda").to(torch.int32)
