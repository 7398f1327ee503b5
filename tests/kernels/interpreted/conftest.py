"""Triton kernels on the CPU, by Triton's interpreter: TRITON_INTERPRET=1 pytest tests/kernels/interpreted

Triton reads the flag when a kernel is defined, so these tests need a process of their own. Two things are put right here:
products of fp16 tiles are made in float32 (numpy's are thirteen times slower, with the same result), and arithmetic on
bf16, which the interpreter does on the raw bits without a word, is an error. What a test launches must be launched as it is
compiled ahead of time: otherwise the report would be of other machine code than what runs.

Without the flag, where there is a GPU, the same tests are of what the kernels do on it: a launcher that is given tensors of
the CPU runs on copies of them on the GPU (make test-kernels-gpu).
"""

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache, wraps
from types import ModuleType
from typing import Any

import hubquant_kernels.gpu
import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from torch.utils._pytree import tree_map_only
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    raise pytest.UsageError(
        "these tests run kernels in Triton's interpreter, TRITON_INTERPRET=1 pytest tests/kernels/interpreted, or on a GPU, and "
        "torch sees none"
    )


torch.set_num_threads(1)  # tiles are small; other processes use the other cores


@pytest.fixture
def device() -> str:
    """Where kernels run that a test launches itself."""
    return "cpu" if INTERPRETED else "cuda"


def _modules() -> list[ModuleType]:
    names = (module.name for module in pkgutil.iter_modules(hubquant_kernels.gpu.__path__))
    return [importlib.import_module(f"hubquant_kernels.gpu.{name}") for name in names]


def _there_and_back(launch: Callable[..., Any]) -> Callable[..., Any]:
    """`launch` on the GPU for tensors of the CPU; one without a result writes into its arguments."""

    @wraps(launch)
    def launched(*arguments: Any, **options: Any) -> Any:
        if not any(isinstance(a, Tensor) and a.device.type == "cpu" for a in arguments):
            return launch(*arguments, **options)
        moved = tree_map_only(Tensor, lambda t: t.cuda(), arguments)
        result = launch(*moved, **options)
        for mine, its in zip(arguments, moved, strict=True) if result is None else ():
            if isinstance(mine, Tensor):
                mine.copy_(its)
        return tree_map_only(Tensor, lambda t: t.cpu(), result)

    return launched


if not INTERPRETED:
    for _module in _modules():
        for _name, _launch in inspect.getmembers(_module, inspect.isfunction):
            if _launch.__module__ == _module.__name__ and not _name.startswith("_"):
                setattr(_module, _name, _there_and_back(_launch))

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


_launched: list[tuple[Any, dict[str, Any]]] = []
_run = InterpretedFunction.run


def _noting(self: InterpretedFunction, *arguments: Any, **options: Any) -> Any:
    _launched.append((self, options))
    return _run(self, *arguments, **options)


if INTERPRETED:
    InterpretedFunction.run = _noting
    InterpreterBuilder.create_dot = _dot
    for _name in ARITHMETIC:
        setattr(InterpreterBuilder, _name, _refusing_bf16(_name, getattr(InterpreterBuilder, _name)))


@cache
def _compiled() -> dict[str, set[tuple[int, int, bool]]]:
    """How each kernel is compiled ahead of time: warps, stages, whether products are fused into sums."""
    found: dict[str, set[tuple[int, int, bool]]] = {}
    for module in _modules():
        for one in getattr(module, "COMPILATIONS", ()):
            found.setdefault(_called(one.kernel), set()).add((one.num_warps, one.num_stages, one.fp_fusion))
    return found


def _called(kernel: InterpretedFunction) -> str:
    return f"{kernel.fn.__module__}.{kernel.fn.__name__}"


@pytest.fixture(autouse=True)
def launched_as_compiled() -> Iterator[None]:
    _launched.clear()
    yield
    for kernel, options in _launched:
        if kernel.fn.__module__.startswith("hubquant_kernels"):
            how = options.get("num_warps", 4), options.get("num_stages", 3), options.get("enable_fp_fusion", True)
            assert how in _compiled().get(_called(kernel), set()), f"{_called(kernel)} is launched with {how}, and not compiled so"
