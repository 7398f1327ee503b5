"""Triton kernels on the CPU, by Triton's interpreter: TRITON_INTERPRET=1 pytest tests/kernels/interpreted

Triton reads the flag when a kernel is defined, so these tests need a process of their own. Two things are put right here:
products of fp16 tiles are made in float32 (numpy's are thirteen times slower, with the same result), and arithmetic on
bf16, which the interpreter does on the raw bits without a word, is an error. What a test launches must be launched as it is
compiled ahead of time: otherwise the report would be of other machine code than what runs.
"""

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("these tests run kernels in Triton's interpreter: TRITON_INTERPRET=1 pytest tests/kernels/interpreted")

import hubquant_kernels.gpu
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

torch.set_num_threads(1)  # tiles are small; other processes use the other cores

ARITHMETIC = ("create_fadd", "create_fsub", "create_fmul", "create_fdiv", "create_fma", "create_dot", "create_exp", "create_sqrt")


def _refusing_bf16(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
    def checked(self: InterpreterBuilder, *arguments: Any) -> Any:
        if any(isinstance(a, TensorHandle) and a.dtype.scalar == tl.bfloat16 for a in arguments):
            raise TypeError(f"{name} of bf16: the interpreter computes on its raw bits; load with .to(tl.float32)")
        return operation(self, *arguments)

    return checked


def _dot(self: InterpreterBuilder, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    if a.dtype.primitive_bitwidth == 8 and a.dtype.is_floating():
        raise TypeError("products of fp8 tiles are not used here")
    product = np.matmul(a.data.astype(d.data.dtype), b.data.astype(d.data.dtype))
    return TensorHandle(product + d.data, d.dtype.scalar)


InterpreterBuilder.create_dot = _dot
for _name in ARITHMETIC:
    setattr(InterpreterBuilder, _name, _refusing_bf16(_name, getattr(InterpreterBuilder, _name)))


_launched: list[tuple[Any, dict[str, Any]]] = []
_run = InterpretedFunction.run


def _noting(self: InterpretedFunction, *arguments: Any, **options: Any) -> Any:
    _launched.append((self, options))
    return _run(self, *arguments, **options)


InterpretedFunction.run = _noting


@cache
def _compiled() -> dict[str, set[tuple[int, int, bool]]]:
    """How each kernel is compiled ahead of time: warps, stages, whether products are fused into sums."""
    found: dict[str, set[tuple[int, int, bool]]] = {}
    for module in pkgutil.iter_modules(hubquant_kernels.gpu.__path__):
        for one in getattr(importlib.import_module(f"hubquant_kernels.gpu.{module.name}"), "COMPILATIONS", ()):
            found.setdefault(_name(one.kernel), set()).add((one.num_warps, one.num_stages, one.fp_fusion))
    return found


def _name(kernel: InterpretedFunction) -> str:
    return f"{kernel.fn.__module__}.{kernel.fn.__name__}"


@pytest.fixture(autouse=True)
def launched_as_compiled() -> Iterator[None]:
    _launched.clear()
    yield
    for kernel, options in _launched:
        if kernel.fn.__module__.startswith("hubquant_kernels"):
            how = options.get("num_warps", 4), options.get("num_stages", 3), options.get("enable_fp_fusion", True)
            assert how in _compiled().get(_name(kernel), set()), f"{_name(kernel)} is launched with {how}, and not compiled so"
