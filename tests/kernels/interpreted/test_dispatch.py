"""Operators as a GPU would dispatch them: registered for CUDA, each by the launcher of its name, with the operator's arguments."""

import contextlib
from typing import Any

import pytest
import torch
from hubquant_kernels import dispatch
from hubquant_kernels.awq_search import awq_losses, quadratic_form
from hubquant_kernels.descend import descend_block
from hubquant_kernels.divergence import divergence, divergence_of_heads
from hubquant_kernels.gptq_block import gptq_block, gptq_codebook_block
from hubquant_kernels.grid import fit_group
from hubquant_kernels.hessian import accumulate_hessian
from torch import Tensor

N = 16
EYE = torch.eye(N)


def weight(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, N, generator=torch.Generator().manual_seed(0)).to(dtype)


ARGUMENTS: dict[Any, tuple[Any, ...]] = {
    accumulate_hessian: (EYE, weight()),
    fit_group: (weight(), torch.ones(N), 4, True),
    gptq_block: (weight(), EYE, torch.ones(3, 1), torch.full((3, 1), 8.0), 15),
    gptq_codebook_block: (weight(), EYE, torch.full((3, 1), 0.01)),
    descend_block: (torch.full((3, N), 8.0), weight(), EYE, torch.ones(3, N), 15),
    quadratic_form: (weight(), EYE),
    awq_losses: (weight(), EYE, torch.ones(2, N), 4, 8, True),
    divergence: (weight(), 2 * weight(), torch.tensor([0, 5, 15])),
    divergence_of_heads: (*(weight(torch.float16) for _ in range(4)), torch.tensor([0, 1, 2])),
}


@pytest.mark.parametrize("operator", ARGUMENTS, ids=lambda operator: operator._name)
def test_the_gpus_implementation_is_called_as_the_operator_is(operator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are let through to Triton, which interprets them here; both give the same but for the rounding of sums."""
    monkeypatch.setattr(dispatch, "usable", lambda *arguments: True)
    monkeypatch.setattr("torch.cuda.device", lambda device: contextlib.nullcontext())
    taken: list[str] = []
    launcher = dispatch.launcher
    monkeypatch.setattr(dispatch, "launcher", lambda module, name: taken.append(name) or launcher(module, name))
    ours, theirs = (tuple(a.clone() if isinstance(a, Tensor) else a for a in ARGUMENTS[operator]) for _ in range(2))
    results, expected = operator._backend_fns["cuda"](*ours), operator._init_fn(*theirs)
    assert taken == [operator._name]
    for mine, its in zip(_tensors(results) or ours, _tensors(expected) or theirs, strict=True):
        if isinstance(mine, Tensor):
            assert mine.dtype == its.dtype
            assert torch.allclose(mine.float(), its.float(), rtol=1e-3, atol=1e-4)


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return () if result is None else (result,) if isinstance(result, Tensor) else tuple(result)


def test_what_a_kernel_does_not_accept_is_left_to_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group too large for the registers, and heads in float32."""
    monkeypatch.setattr(dispatch, "usable", lambda *arguments: True)
    monkeypatch.setattr(dispatch, "launcher", lambda module, name: pytest.fail(f"{name} was launched"))
    large = torch.randn(2, 256)
    codes, _ = gptq_block._backend_fns["cuda"](large, torch.eye(256), torch.ones(2, 1), torch.zeros(2, 1), 15)
    assert codes.shape == (2, 256)
    hidden, head = torch.randn(2, 8), torch.randn(5, 8)
    _, kl, _ = divergence_of_heads._backend_fns["cuda"](hidden, head, hidden, head, torch.tensor([0, 1]))
    assert torch.equal(kl, torch.zeros(2))
