"""What a benchmark file offers: `cases() -> list[Case]`, run on a GPU by `hubquant kernels bench`; and what several need."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One operator at one shape, by every implementation that is there to compare.

    `shape`: in words, for the table. `prepare` makes the tensors on the GPU and returns the implementations by name:
    "triton" is the operator as it is dispatched, "definition" its plain torch (the runner adds it compiled by torch.compile),
    the others are named as what they are ("torch fp16", "marlin"). `memory_bytes`: what has to be read and written at least;
    `operations`: floating-point operations (a multiply-add is two; 0: not counted).
    """

    kernel: str
    shape: str
    prepare: Callable[[], Mapping[str, Run]]
    memory_bytes: float
    operations: float = 0.0


def with_tf32(allowed: bool, run: Run) -> object:
    """`run` with TF32 allowed in torch's products of float32, or not."""
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, allowed
    try:
        return run()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def random_blocks(rows: int, row_bytes: int) -> Tensor:
    """Bytes of which no two make a float16 that is not finite: the upper is less than 0x3C."""
    return torch.randint(0, 0x3C, (rows, row_bytes), dtype=torch.uint8, device="cuda")
