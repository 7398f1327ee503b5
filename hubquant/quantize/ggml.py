"""The GGUF block types: weights to bytes and back. The mathematics is in hubquant_kernels and iquant; here the input is checked."""

import math
from typing import Literal

import torch
from hubquant_kernels.ggml_dequantize import ggml_dequantize
from hubquant_kernels.ggml_quantize import ggml_quantize
from hubquant_kernels.ggml_range import OutOfRange, check_values, largest_magnitude
from hubquant_kernels.ggml_types import GGML_TYPES as KERNEL_TYPES
from hubquant_kernels.ggml_types import GgmlType
from torch import Tensor

from hubquant.errors import BadModel, UsageError
from hubquant.quantize import iquant
from hubquant.quantize.iquant import IQ_TYPES, NEEDS_IMPORTANCE

__all__ = ["GGML_TYPES", "NEEDS_IMPORTANCE", "GgmlType", "decode", "encode", "fallback", "ggml_type", "row_bytes"]

GGML_TYPES: dict[str, GgmlType] = {**KERNEL_TYPES, **IQ_TYPES}

Mode = Literal["best", "reference"]

# llama.cpp's substitute when a row is not a whole number of 256-weight blocks
_FALLBACK = {
    **dict.fromkeys((*IQ_TYPES, "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_K", "Q3_K"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def ggml_type(type_name: str) -> GgmlType:
    """The type of that name. Raises UsageError naming the known ones."""
    try:
        return GGML_TYPES[type_name]
    except KeyError:
        raise UsageError(f"unknown GGUF type {type_name!r}; known: {', '.join(GGML_TYPES)}") from None


def row_bytes(type_name: str, n: int) -> int:
    """Bytes that a row of n weights takes. Raises BadModel where n is not a whole number of blocks."""
    kind = ggml_type(type_name)
    if n % kind.block_size:
        substitute = fallback(kind.name, n)
        raise BadModel(f"a row of {n} weights is no multiple of {kind.name}'s block of {kind.block_size}; use {substitute} for it")
    return n // kind.block_size * kind.type_size


def fallback(type_name: str, n: int) -> str:
    """The type llama.cpp stores rows of n weights in when `type_name` is asked for: the same where it fits."""
    kind = ggml_type(type_name)
    if n % kind.block_size == 0:
        return type_name
    substitute = _FALLBACK.get(type_name, type_name)
    return substitute if n % GGML_TYPES[substitute].block_size == 0 else "F16"


def encode(weight: Tensor, type_name: str, importance: Tensor | None = None, mode: Mode = "best") -> Tensor:
    """Weights [out, in], float → uint8 [out, row_bytes].

    `importance` [in] ≥ 0 is the mean squared input of each column, or [out, in] what each weight counts; without it all count
    alike. `mode` "reference" gives the bytes of llama.cpp, "best" the lowest Σ importance·error² found in the same number of
    bytes; IQ1 to IQ3 have one mode. Raises BadModel on a row that is not a whole number of blocks, on NaN, infinite or too
    large values, and where a type of NEEDS_IMPORTANCE is to be written without.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise BadModel(f"{type_name} needs a float matrix, not {weight.dtype} of shape {tuple(weight.shape)}")
    row_bytes(type_name, weight.shape[1])
    if importance is not None:
        importance = _checked_importance(importance, weight)
    elif type_name in NEEDS_IMPORTANCE:
        raise BadModel(f"{type_name} is written with an importance matrix only; calibrate, or take a mixture of more bits")
    try:
        if type_name in IQ_TYPES:
            check_values(weight, type_name, largest_magnitude(weight))
            return iquant.encode(weight, IQ_TYPES[type_name], importance)
        data: Tensor = ggml_quantize(weight, importance, type_name, mode)
    except OutOfRange as error:
        raise BadModel(str(error)) from None
    return data


def _checked_importance(importance: Tensor, weight: Tensor) -> Tensor:
    """On the device of the weights, float32, each row about 1."""
    if importance.shape not in (weight.shape[1:], weight.shape):
        raise BadModel(f"importance of shape {tuple(importance.shape)} does not match {weight.shape[1]} input columns")
    importance = importance.to(device=weight.device, dtype=torch.float32)
    if not importance.numel():
        return importance
    low, high = (float(t) for t in torch.aminmax(importance))
    if not 0 <= low <= high < math.inf:
        raise BadModel("importance must be finite and not negative; calibrate again")
    return _about_one(importance)


def _about_one(importance: Tensor) -> Tensor:
    """Each row of importance times the power of two that brings its largest near 1, which changes no choice: sums of larger ones
    may overflow, and those of smaller ones vanish. Rows of zeros stay as they are."""
    _, exponent = torch.frexp(importance.amax(-1, keepdim=True))
    half = exponent // 2  # 2¹⁴⁹, for the smallest of all, is no float32
    return torch.ldexp(torch.ldexp(importance, -half), half - exponent)


def decode(data: Tensor, type_name: str) -> Tensor:
    """uint8 [out, row_bytes] → float32 [out, in]. Raises BadModel where the bytes are not whole blocks."""
    kind = ggml_type(type_name)
    if data.dtype != torch.uint8 or data.ndim != 2 or data.shape[1] % kind.type_size:
        raise BadModel(f"{data.dtype} of shape {tuple(data.shape)} is no rows of {kind.name} blocks of {kind.type_size} bytes")
    if type_name in IQ_TYPES:
        return iquant.decode(data, kind)
    weight: Tensor = ggml_dequantize(data, type_name)
    return weight
