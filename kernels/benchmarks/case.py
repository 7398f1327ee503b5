"""What a benchmark file offers: `cases() -> list[Case]`, run on a GPU by `hubquant kernels bench`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
