"""Functions of tensors that are compiled for the CPU by torch's inductor once they have proved to be worth it.

Compiling takes some seconds per function and shape. So a function runs as it stands until it has taken as long as that, and
never costs more than twice what the better choice would have. Its results must not depend on it: operations are neither fused
nor reordered, and a sum over dim 0 adds the rows in their order. Without a C++ compiler, or where it fails (headers of Python
that are not installed), functions run as they stand.
"""

import math
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

# CPU seconds: about what one compilation takes. HUBQUANT_COMPILE_AFTER replaces it (0: compile at once, inf: never)
PATIENCE = 3.0
_OPTIONS = {
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp.enable_unsafe_math_opt_flag": False,
    "cpp.threads": 1,
    "size_asserts": False,
}


@cache
def _has_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _patience() -> float:
    return float(os.environ.get("HUBQUANT_COMPILE_AFTER", PATIENCE))


class Compiled:
    """A function of tensors, for the CPU. A caller asks for its machine code, and where there is none yet gives the time it
    takes without.

        kernel = FUNCTION.kernel(*arguments)
        if kernel is None:
            with FUNCTION.instead(*arguments):
                ...
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._kernels: dict[tuple[torch.Size, ...], Callable[..., Tensor] | None] = {}
        self._spent: dict[tuple[torch.Size, ...], float] = {}
        self._lock = threading.Lock()

    def kernel(self, *arguments: Tensor) -> Callable[..., Tensor] | None:
        """The machine code for contiguous arguments of these shapes; None where it is not worth having, or cannot be had."""
        shapes = tuple(t.shape for t in arguments)
        patience = _patience()
        if math.isinf(patience) or arguments[0].device.type != "cpu":
            return None
        if shapes not in self._kernels:
            if self._spent.get(shapes, 0.0) < patience or not _has_compiler():
                return None
            with self._lock:
                if shapes not in self._kernels:
                    self._kernels[shapes] = compile_for(self.function, arguments)
        return self._kernels[shapes]

    @contextmanager
    def instead(self, *arguments: Tensor) -> Iterator[None]:
        """Counts the CPU time of what runs in place of the machine code for these arguments."""
        started = time.thread_time()
        yield
        shapes = tuple(t.shape for t in arguments)
        self._spent[shapes] = self._spent.get(shapes, 0.0) + time.thread_time() - started


def compile_for(function: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Callable[..., Tensor] | None:
    """Machine code of the function for contiguous tensors of these shapes, kept on disk by inductor; None if that fails."""
    import torch._inductor.exc  # slow to import
    from torch.fx.experimental.proxy_tensor import make_fx

    examples: list[Any] = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]
    with torch.no_grad():
        graph = make_fx(lambda *args: (function(*args),))(*examples)
        try:
            kernel = torch._inductor.compile(graph, examples, options=_OPTIONS)
        except torch._inductor.exc.InductorError as error:
            why = str(error).partition("\n")[0]
            warnings.warn(f"GGUF searches run uncompiled, some twice as long: {why}", RuntimeWarning, stacklevel=2)
            return None

    def run(*arguments: Tensor) -> Tensor:
        result: Tensor = kernel(*arguments)[0]
        return result

    return run
