"""Which of its candidates each tensor gets so that the sum of their errors is least and the sum of their sizes keeps a budget.

Lagrange's way: of each tensor's candidates only those on the lower convex hull of (size, error) can be best for some price of a
byte. From the smallest candidates on, the step along a hull that takes off most error per byte is taken first. Without a budget
left between, that is the optimum; what is left in the end buys the steps that still fit, in the same order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Candidate:
    """A way to store a tensor: its ggml type, the bytes it takes, and what it costs in error."""

    kind: str
    size: int
    error: float


def hull(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The lower convex hull, from the smallest to the one of least error."""
    kept: list[Candidate] = []
    for new in sorted(candidates, key=lambda c: (c.size, c.error)):
        if kept and new.error >= kept[-1].error:
            continue
        while len(kept) > 1 and _gain(kept[-2], kept[-1]) <= _gain(kept[-2], new):
            kept.pop()
        kept.append(new)
    return kept


def _gain(small: Candidate, large: Candidate) -> float:
    """Error taken off per byte."""
    return (small.error - large.error) / (large.size - small.size)


def smallest(candidates: Mapping[str, Sequence[Candidate]]) -> int:
    """Bytes below which no choice gets."""
    return sum(min(c.size for c in own) for own in candidates.values())


def allocate(candidates: Mapping[str, Sequence[Candidate]], budget: int) -> dict[str, Candidate]:
    """A candidate for each tensor, of `budget` bytes together at the most. Raises ValueError if the smallest are larger."""
    left = budget - smallest(candidates)
    if left < 0:
        raise ValueError(f"the smallest candidates take {budget - left} bytes, the budget is {budget}")
    hulls = {name: hull(own) for name, own in candidates.items()}
    chosen = {name: own[0] for name, own in hulls.items()}
    steps = [(_gain(a, b), name, a, b) for name, own in hulls.items() for a, b in pairwise(own)]
    # gains fall along a hull, so a stable sort keeps the steps of one tensor in order
    for _, name, before, after in sorted(steps, key=lambda step: -step[0]):
        # a step that does not fit is left out, and with it those that would follow it
        if chosen[name] is before and after.size - before.size <= left:
            chosen[name] = after
            left -= after.size - before.size
    return chosen
