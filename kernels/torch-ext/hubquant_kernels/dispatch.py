"""Which devices run the Triton implementations. Where one cannot, the operator's definition runs, and that is said once."""

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

AMPERE = (8, 0)  # Triton has no tensor-core path for older NVIDIA parts: its kernels would spill and crawl there


def usable(tensor: Tensor, minimum_capability: tuple[int, int] = AMPERE) -> bool:
    """Whether `tensor` lies on a GPU that runs the Triton kernels. If it lies on another GPU, a warning says why, once."""
    if not tensor.is_cuda:
        return False
    obstacle = _obstacle(tensor.device.index, minimum_capability)
    if obstacle:
        _say(obstacle)
    return not obstacle


@functools.cache
def target(index: int) -> str:
    """The part that device `index` is: "sm_90" (NVIDIA, compute capability 9.0) or "gfx942" (AMD)."""
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(index).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def on_gpu(
    operator: Any,
    module: str,
    minimum_capability: tuple[int, int] = AMPERE,
    accepts: Callable[..., bool] = lambda *arguments: True,
) -> None:
    """Let `operator` (a torch.library.custom_op) run on CUDA and ROCm devices by the function of its name in gpu/`module`.py.

    Where that cannot run, or does not accept the arguments, the operator's definition does. The module is imported at the
    first call: it needs triton.
    """
    name = operator._name

    def run(*arguments: Any) -> Any:
        tensor = next(a for a in arguments if isinstance(a, Tensor))
        if not (usable(tensor, minimum_capability) and accepts(*arguments)):
            return operator._init_fn(*arguments)
        with torch.cuda.device(tensor.device):
            return launcher(module, name)(*arguments)

    operator.register_kernel("cuda")(run)


@functools.cache
def launcher(module: str, name: str) -> Callable[..., Any]:
    """The function `name` of gpu/`module`.py."""
    found: Callable[..., Any] = getattr(importlib.import_module(f".gpu.{module}", __package__), name)
    return found


@functools.cache
def _obstacle(index: int, minimum_capability: tuple[int, int]) -> str:
    """Why device `index` runs the definitions: "" if it does not have to."""
    device = torch.cuda.get_device_name(index)
    if importlib.util.find_spec("triton") is None:
        return f"{device}: the package triton is not installed, so hubquant's kernels run as plain torch; pip install triton"
    capability = torch.cuda.get_device_capability(index)
    if not torch.version.hip and capability < minimum_capability:
        has, needed = (".".join(map(str, version)) for version in (capability, minimum_capability))
        return f"{device} has compute capability {has} and hubquant's Triton kernels need {needed}: they run as plain torch"
    return ""


@functools.cache
def _say(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=4)
