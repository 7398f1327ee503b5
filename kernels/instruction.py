"""A line of machine code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """One line of machine code: its labels, its predicate ("!P0"; none on AMD), its name and operands, where it branches to,
    and whether the next line may follow it."""

    labels: tuple[str, ...]
    predicate: str
    name: str
    operands: tuple[str, ...]
    target: str
    goes_on: bool
