"""Which weights a block type can hold."""

import torch
from torch import Tensor

# the scale of a block is a float16, but for these
LARGEST = 65504.0
WIDE = ("F32", "BF16", "MXFP4")


class OutOfRange(ValueError):
    """A weight is NaN, infinite, or too large for the type."""


def largest_magnitude(weight: Tensor) -> float:
    """NaN if there is one."""
    low, high = (t.item() for t in torch.aminmax(weight)) if weight.numel() else (0.0, 0.0)
    return max(-low, high)


def check_values(weight: Tensor, type_name: str, largest: float) -> None:
    """Raises OutOfRange where weights of which that is the largest magnitude do not fit."""
    if not largest < float("inf"):
        bad = int((~weight.float().isfinite()).sum())
        raise OutOfRange(f"{bad} of {weight.numel()} weights are NaN or infinite; the tensor cannot be stored as {type_name}")
    if largest > LARGEST and type_name not in WIDE:
        raise OutOfRange(
            f"a weight of magnitude {largest:g} does not fit {type_name}, whose scales are float16; keep the tensor in BF16 or F32"
        )
