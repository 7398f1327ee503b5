"""The column loop in Triton: every code is the nearest to what compensation left."""

import pytest
import torch
from hubquant_kernels import gptq_block as definition
from hubquant_kernels.ggml_codebook import codebook
from hubquant_kernels.gpu import gptq_block as kernel
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


def check(inputs: tuple[Tensor, Tensor, Tensor, Tensor], codes: Tensor, errors: Tensor, levels: Tensor | None = None) -> None:
    """Walk the channels in float64 with the codes that were chosen: each must be the nearest to what compensation left there.

    levels [16]: what the codes stand for, in steps from zero; by themselves 0 to MAX_CODE."""
    weight, factor, scale, zero = (t.double() for t in inputs)
    levels = torch.arange(MAX_CODE + 1.0) if levels is None else levels
    rest, levels = weight.clone(), levels.double()
    for i in range(weight.shape[1]):
        target, chosen = rest[:, i] / scale[:, 0] + zero[:, 0], levels[codes[:, i].long()]
        nearest = (levels - target[:, None]).abs().amin(1)
        assert float(((chosen - target).abs() - nearest).max()) <= 2 * NEAR_TIE
        error = (rest[:, i] - (chosen - zero[:, 0]) * scale[:, 0]) / factor[i, i]
        assert torch.allclose(errors[:, i].double(), error, rtol=1e-3, atol=1e-4 * float(errors.abs().max()))
        rest[:, i + 1 :] -= error[:, None] * factor[i, None, i + 1 :]


@pytest.mark.parametrize(("out", "n"), [(1, 1), (1, 16), (16, 16), (17, 33), (40, 48), (3, 128)])
def test_every_code_is_the_nearest_to_what_compensation_left(out: int, n: int) -> None:
    inputs = problem(out, n, seed=out)
    codes, errors = kernel.gptq_block(*inputs, MAX_CODE)
    assert codes.dtype == torch.uint8
    check(inputs, codes, errors)


def test_codes_are_the_definitions() -> None:
    """Every operation rounds as the definition's does, so they differ only where torch fuses a product into its sum."""
    inputs = problem(out=32, n=64, seed=0)
    codes, errors = kernel.gptq_block(*inputs, MAX_CODE)
    expected, their_errors = definition.gptq_block(*inputs, MAX_CODE)
    assert float((codes == expected).float().mean()) >= 0.999
    same = (codes == expected).all(dim=1)
    assert torch.allclose(errors[same], their_errors[same], rtol=1e-4, atol=1e-5 * float(errors.abs().max()))


def test_what_lies_below_the_diagonal_is_not_read() -> None:
    weight, factor, scale, zero = problem(out=8, n=16, seed=1)
    dirty = factor + torch.full((16, 16), 7.0).tril(-1)
    assert torch.equal(
        kernel.gptq_block(weight, dirty, scale, zero, MAX_CODE)[0], kernel.gptq_block(weight, factor, scale, zero, 15)[0]
    )


def test_a_batch_is_its_matrices_one_by_one() -> None:
    problems = [problem(out=18, n=16, seed=seed) for seed in range(3)]
    codes, errors = kernel.gptq_block(*(torch.stack(parts) for parts in zip(*problems, strict=True)), MAX_CODE)
    for i, one in enumerate(problems):
        check(one, codes[i], errors[i])
        assert torch.equal(codes[i], kernel.gptq_block(*one, MAX_CODE)[0])


@pytest.mark.parametrize("value", [0.0, 1e-40, 1e30])
def test_constant_weights_of_any_size_give_codes_in_range(value: float) -> None:
    _, factor, scale, zero = problem(out=4, n=16, seed=7)
    codes, errors = kernel.gptq_block(torch.full((4, 16), value), factor, scale, zero, MAX_CODE)
    expected, their_errors = definition.gptq_block(torch.full((4, 16), value), factor, scale, zero, MAX_CODE)
    assert torch.equal(codes, expected)
    assert torch.allclose(errors, their_errors, rtol=1e-5)


@pytest.mark.parametrize("out", [1, 17])
def test_codes_of_the_codebook_are_the_definitions(out: int) -> None:
    weight, factor, scale, _ = problem(out, n=32, seed=out)
    scale /= 16
    codes, errors = kernel.gptq_codebook_block(weight, factor, scale)
    expected, _ = definition.gptq_codebook_block(weight, factor, scale)
    check((weight, factor, scale, torch.zeros(out, 1)), codes, errors, codebook(weight.device))
    assert int((codes == expected).all(dim=1).sum()) >= out - 1
