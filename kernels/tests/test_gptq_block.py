"""GPTQ's column loop against the paper's formula in float64, one channel at a time."""

import pytest
import torch
from hubquant_kernels.gptq_block import TRIED, gptq_block, gptq_group
from hubquant_kernels.grid import fit_group, storable
from torch import Tensor

MAX_CODE = 15
NEAR_TIE = 1e-3  # in steps: below this float32 may round to the other side of a half


def problem(out: int, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, factor, scale, zero of one block; the factor is of a real damped Hessian of correlated inputs."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * n, n, generator=random, dtype=torch.float64) @ torch.randn(n, n, generator=random, dtype=torch.float64)
    hessian = x.T @ x
    hessian += 0.05 * hessian.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    weight = 0.02 * torch.randn(out, n, generator=random)
    scale = (weight.abs().amax(1, keepdim=True) / 7.5) * torch.where(torch.rand(out, 1, generator=random) < 0.5, -1.0, 1.0)
    zero = torch.randint(0, MAX_CODE + 1, (out, 1), generator=random).float()
    return weight, factor.float(), scale, zero


def check_against_float64(inputs: tuple[Tensor, Tensor, Tensor, Tensor], codes: Tensor, errors: Tensor) -> Tensor:
    """Walk the channels in float64 with the codes that were chosen: each must be the nearest to what compensation left there.

    Returns the distance in steps by which each code is farther than the nearest one, [out, n].
    """
    weight, factor, scale, zero = (t.double() for t in inputs)
    rest, excess = weight.clone(), torch.empty_like(weight)
    for i in range(weight.shape[1]):
        target = torch.clamp(rest[:, i] / scale[:, 0] + zero[:, 0], 0, MAX_CODE)
        excess[:, i] = (codes[:, i].double() - target).abs() - 0.5
        error = (rest[:, i] - (codes[:, i].double() - zero[:, 0]) * scale[:, 0]) / factor[i, i]
        assert torch.allclose(errors[:, i].double(), error, rtol=1e-3, atol=1e-4 * float(errors.abs().max()))
        rest[:, i + 1 :] -= error[:, None] * factor[i, None, i + 1 :]
    return excess


def test_every_code_is_the_nearest_to_what_compensation_left() -> None:
    for seed in range(6):
        inputs = problem(out=32, n=48, seed=seed)
        codes, errors = gptq_block(*inputs, MAX_CODE)
        assert codes.dtype == torch.uint8
        assert int(codes.max()) <= MAX_CODE
        assert float(check_against_float64(inputs, codes, errors).max()) <= NEAR_TIE


def test_compensation_is_what_makes_the_codes() -> None:
    """The check above would not hold for codes rounded without it."""
    inputs = problem(out=32, n=48, seed=0)
    codes, _ = gptq_block(*inputs, MAX_CODE)
    weight, _, scale, zero = inputs
    plain = torch.clamp(torch.round(weight / scale) + zero, 0, MAX_CODE).to(torch.uint8)
    assert not torch.equal(codes, plain)


def test_a_diagonal_factor_is_plain_rounding() -> None:
    weight, factor, scale, zero = problem(out=16, n=32, seed=1)
    codes, errors = gptq_block(weight, torch.diag(factor.diagonal()), scale, zero, MAX_CODE)
    expected = torch.clamp(torch.round(weight / scale) + zero, 0, MAX_CODE)
    assert torch.equal(codes, expected.to(torch.uint8))
    assert torch.allclose(errors, (weight - (expected - zero) * scale) / factor.diagonal())


def test_columns_of_several_groups_have_scales_of_their_own() -> None:
    weight, factor, scale, zero = problem(out=16, n=32, seed=1)
    scales, zeros = scale * torch.linspace(0.5, 2, 32), (zero + torch.arange(32)) % (MAX_CODE + 1)
    codes, errors = gptq_block(weight, torch.diag(factor.diagonal()), scales, zeros, MAX_CODE)
    expected = torch.clamp(torch.round(weight / scales) + zeros, 0, MAX_CODE)
    assert torch.equal(codes, expected.to(torch.uint8))
    assert torch.allclose(errors, (weight - (expected - zeros) * scales) / factor.diagonal())


def test_the_weight_is_left_alone_even_if_it_is_one_row() -> None:
    for out in (1, 2):
        inputs = problem(out=out, n=16, seed=2)
        before = inputs[0].clone()
        gptq_block(*inputs, MAX_CODE)
        assert torch.equal(inputs[0], before)


def test_the_same_problem_gives_the_same_codes() -> None:
    inputs = problem(out=8, n=64, seed=3)
    assert torch.equal(gptq_block(*inputs, MAX_CODE)[0], gptq_block(*inputs, MAX_CODE)[0])


def test_operator_keeps_torchs_rules() -> None:
    for out in (1, 4):
        torch.library.opcheck(gptq_block, (*problem(out=out, n=8, seed=4), MAX_CODE))


def test_a_batch_is_its_matrices_one_by_one() -> None:
    problems = [problem(out=8, n=16, seed=seed) for seed in range(3)]
    codes, errors = gptq_block(*(torch.stack(parts) for parts in zip(*problems, strict=True)), MAX_CODE)
    for i, one in enumerate(problems):
        assert torch.equal(codes[i], gptq_block(*one, MAX_CODE)[0])
        assert torch.equal(errors[i], gptq_block(*one, MAX_CODE)[1])


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_group_is_its_columns_under_a_scale_as_good_as_any_tried(symmetric: bool) -> None:
    """A channel that is not seen, and so not correlated with any, has no say in the scale, and is rounded to it."""
    weight, factor, _, _ = problem(out=8, n=16, seed=5)
    weight[:, 3], factor[:3, 3], factor[3, 4:] = 10.0, 0.0, 0.0
    metric, seen = torch.linalg.inv(factor), torch.arange(16) != 3
    codes, errors, scale, zero = gptq_group(weight, factor, metric, seen, 4, symmetric)
    first, origin = fit_group(weight * seen, metric.diagonal(), 4, symmetric)
    assert torch.equal(zero, origin)
    assert torch.equal(scale.half().float(), scale)
    assert bool((scale.abs() < 0.1).all())
    assert torch.equal(codes, gptq_block(weight, factor, scale, zero, MAX_CODE)[0])
    assert torch.equal(errors, gptq_block(weight, factor, scale, zero, MAX_CODE)[1])
    for times in TRIED:
        other = gptq_block(weight, factor, storable(first * times), zero, MAX_CODE)[1]
        assert bool(((errors.square() * seen).sum(1) <= (other.square() * seen).sum(1)).all())


@pytest.mark.parametrize("n", [32, 30])  # columns are taken four at a time
@pytest.mark.parametrize("symmetric", [True, False])
def test_machine_code_finds_what_plain_torch_finds(symmetric: bool, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are taken in another order: now and then a code at a half goes the other way, and with it what is best."""
    weight, factor, _, _ = problem(out=200, n=n, seed=7)
    weight[:, 5], factor[:5, 5], factor[5, 6:] = 10.0, 0.0, 0.0
    arguments = weight, factor, torch.linalg.inv(factor), torch.arange(n) != 5, 4, symmetric
    codes, errors, scale, zero = gptq_group(*arguments)
    monkeypatch.setenv("HUBQUANT_NATIVE", "0")
    expected_codes, expected_errors, expected_scale, expected_zero = gptq_group(*arguments)
    same = (codes == expected_codes).all(1) & (scale == expected_scale)[:, 0]
    assert float(same.float().mean()) > 0.95
    # with the same codes both solve errors·factor = w − q column by column (Higham, Accuracy and Stability, theorem 8.5, for each)
    # and have rounded q and what they take from it before
    q = (codes.float() - zero) * scale
    bound = 2 * (n + 4) * 2.0**-24 * ((expected_errors.abs() @ factor.abs() + weight.abs() + q.abs()) @ arguments[2].abs())
    assert bool(((errors - expected_errors).abs() <= bound)[same].all())
    assert torch.equal(zero[same], expected_zero[same])
    loss, expected = (e[:, torch.arange(n) != 5].square().sum(1) for e in (errors, expected_errors))
    assert bool((loss <= 1.05 * expected).all())


def test_more_than_one_scale_pays() -> None:
    weight, factor, _, _ = problem(out=64, n=32, seed=6)
    metric, seen = torch.linalg.inv(factor), torch.ones(32, dtype=torch.bool)
    _, errors, _, _ = gptq_group(weight, factor, metric, seen, 3, True)
    scale, zero = fit_group(weight, metric.diagonal(), 3, True)
    _, alone = gptq_block(weight, factor, scale, zero, 7)
    assert float((errors.square().sum(1) / alone.square().sum(1)).mean()) < 0.97


def test_the_fused_operator_keeps_torchs_rules() -> None:
    weight, factor, _, _ = problem(out=4, n=8, seed=6)
    arguments = (weight, factor, torch.linalg.inv(factor), torch.ones(8, dtype=torch.bool))
    torch.library.opcheck(gptq_group, (*arguments, 4, True))
    torch.library.opcheck(gptq_group, (*(t[None] for t in arguments), 4, False))
