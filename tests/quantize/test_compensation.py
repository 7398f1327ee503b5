"""The factor of a hessian, and what it carries of errors to the columns after them."""

import pytest
import torch
from torch import Tensor

from hubquant.quantize.compensation import Compensation, Factor, strip_bytes, strips


def hessian_of(seed: int, width: int = 128) -> Tensor:
    """Its largest diagonal element is 1, as a factor takes it."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(300, width, generator=random) @ torch.randn(width, width, generator=random)
    hessian = x.T @ x
    return hessian / hessian.diagonal().amax()


def factor_of(hessian: Tensor, damp_ratio: float) -> Tensor:
    return Factor(hessian, torch.arange(len(hessian)), damp_ratio).R


def check_factor(R: Tensor, damped: Tensor) -> None:
    """RRᵀ is the matrix within the rounding of a Cholesky factorization (Higham 2002, theorem 10.3), element by element."""
    steps = (len(damped) + 1) * torch.finfo(torch.float32).eps / 2
    exact = R.double()
    assert torch.equal(R, R.triu())
    # the damped diagonal itself is a rounded sum
    allowed = steps / (1 - steps) * (exact.abs() @ exact.abs().T) + 2 * torch.finfo(torch.float32).eps * damped.double().abs()
    assert bool(((exact @ exact.T - damped.double()).abs() <= allowed).all())


def test_the_factor_is_that_of_the_damped_hessian_which_stays_as_it_is() -> None:
    hessian = hessian_of(15)
    before = hessian.clone()
    R = factor_of(hessian, 0.05)
    assert torch.equal(hessian, before)
    check_factor(R, hessian.double() + 0.05 * float(hessian.diagonal().mean()) * torch.eye(128))


def test_damping_rises_until_it_is_enough() -> None:
    """Eigenvalue −0.3 of the mean diagonal: a tenth of that is not enough, ten times more is."""
    hessian = torch.diag(torch.tensor([1.3, 1.3, 1.3, -0.3 + 0.1]))
    hessian[0, 3] = hessian[3, 0] = 0.7
    hessian /= 1.3
    mean = float(hessian.diagonal()[hessian.diagonal() > 0].mean())
    repaired = hessian.clone()
    repaired.diagonal()[hessian.diagonal() <= 0] = mean
    check_factor(factor_of(hessian, 0.05), repaired + 0.05 * mean * torch.eye(4))
    indefinite = torch.tensor([[1.0, 1.2], [1.2, 1.0]])
    check_factor(factor_of(indefinite, 0.05), indefinite + 0.5 * torch.eye(2))


def test_without_any_factor_the_diagonal_alone_is_used() -> None:
    hopeless = torch.tensor([[1.0, 9.0], [9.0, 3.0]]) / 3
    assert torch.allclose(factor_of(hopeless, 0.05), torch.diag((torch.tensor([3.0, 5.0]) / 3).sqrt()))


@pytest.mark.parametrize("hessian", [[[1.0, 9.0], [9.0, 3.0]], [[1.0, 1.2], [1.2, 1.0]], [[4.0, 1.0], [1.0, 2.0]]], ids=str)
def test_the_factor_is_that_of_the_hessian_and_the_damping_that_it_names(hessian: list[list[float]]) -> None:
    """Of one that no damping helps, of one that takes more than was asked for, and of a usual one: whoever goes on from ER under
    factor.hessian and factor.damp goes on under what ER was made with. Products and sums of two numbers: a few roundings."""
    factor = Factor(torch.tensor(hessian), torch.tensor([1, 0]), 0.05)
    damped = (factor.hessian + torch.diag(factor.damp))[factor.order][:, factor.order]
    assert torch.allclose(factor.unit * factor.R @ factor.R.T, damped, rtol=8 * 2.0**-24, atol=0)


def test_channels_in_another_order_and_of_another_size() -> None:
    """Powers of two are exact."""
    hessian, order = hessian_of(16), torch.randperm(128, generator=torch.Generator().manual_seed(5))
    assert torch.equal(Factor(hessian * 1024, order, 0.05).R, factor_of(hessian[order][:, order], 0.05))


def test_a_target_is_where_the_loss_of_all_columns_so_far_is_least() -> None:
    """Of columns rounded in blocks, in float64: the block's best answer to the errors before it, the columns after it free.

    Two stable ways to the solution of a system differ by n·κ·2⁻⁵³ of its length each.
    """
    hessian = hessian_of(3, 96).double()
    random = torch.Generator().manual_seed(4)
    weight = torch.randn(5, 96, generator=random, dtype=torch.float64)
    factor = Factor(hessian, torch.arange(96), 0.0)
    compensation = Compensation(factor, 5)
    errors = torch.zeros_like(weight)
    for start, end in ((0, 32), (32, 48), (48, 96)):
        block = compensation.block(start, end)
        target = block.target(weight[:, start:end])
        # minimizing over this block and all after it, given the errors before: H_ff e_f = −H_fb e_b
        free = torch.linalg.solve(hessian[start:, start:], hessian[start:, :start] @ errors[:, :start].T).T
        allowed = 2 * len(hessian) * float(torch.linalg.cond(hessian)) * 2.0**-53 * free.norm(dim=1, keepdim=True)
        assert bool(((target - weight[:, start:end] - free[:, : end - start]).abs() <= allowed).all())
        rounded = (target * 4).round() / 4
        errors[:, start:end] = weight[:, start:end] - rounded
        compensation.carry(block, (target - rounded) @ block.metric)
    # the gradient: sums of 96 products twice over, of numbers that R and its transpose give (Higham 2002, section 3.5)
    size = (errors.abs() @ factor.R.abs() @ factor.R.abs().T + (errors @ hessian).abs()) * factor.unit
    condition = float(torch.linalg.cond(hessian))
    assert bool(((compensation.gradient() - errors @ hessian).abs() <= 4 * 96 * condition * 2.0**-53 * size).all())


def test_the_gradient_is_that_of_the_damped_hessian_in_the_order_of_the_row() -> None:
    hessian, order = hessian_of(9) * 64, torch.randperm(128, generator=torch.Generator().manual_seed(2))
    hessian[:, 5] = hessian[5] = 0
    factor = Factor(hessian, order, 0.05)
    errors = torch.randn(7, 128, generator=torch.Generator().manual_seed(3))
    compensation = Compensation(factor, 7)
    compensation.ER += errors[:, order] @ factor.R
    damped = hessian.double() + torch.diag(factor.damp.double())
    live = torch.arange(128) != 5
    assert torch.equal(factor.damp > 0, live)
    R = factor.R.double().abs()
    size = torch.empty(7, 128, dtype=torch.float64)
    size[:, order] = errors[:, order].double().abs() @ R @ R.T * float(factor.unit)
    # R of 129 roundings on each side, and the two sums of 128 terms
    off = (compensation.gradient().double() - errors.double() @ damped).abs()
    assert bool((off <= 4 * 129 * 2.0**-24 * size)[:, live].all())


def test_rows_are_taken_in_parts_that_cover_them_once() -> None:
    for matrix in (torch.empty(5, 32), torch.empty(3000, 4096), torch.empty(70, 1 << 18)):
        parts = [torch.arange(len(matrix))[rows] for rows in strips(matrix)]
        assert torch.equal(torch.cat(parts), torch.arange(len(matrix)))
        assert all(len(part) * matrix.shape[1] * 4 <= strip_bytes() or len(part) <= 32 for part in parts)


def test_losses_are_never_negative() -> None:
    """Of inputs that are all alike the damping has nearly all of what is subtracted."""
    x = torch.randn(1, 256, generator=torch.Generator().manual_seed(0)).repeat(500, 1)
    factor = Factor(x.T @ x, torch.arange(256), 0.05)
    error = 0.01 * torch.randn(32, 256, generator=torch.Generator().manual_seed(1))
    error -= (error @ x[0])[:, None] * x[:1] / x[0].square().sum()  # of which nothing is seen
    damped = factor.hessian + torch.diag(factor.damp)
    assert bool((factor.losses(error, error @ damped) >= 0).all())
    assert bool((((error @ damped) * error).sum(1) - error.square() @ factor.damp < 0).any()), "rounding would have made some so"
