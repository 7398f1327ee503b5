"""Machine code and plain torch choose the same codes, but where float32 cannot tell two of them apart."""

import pytest
import torch
from hubquant_kernels import native
from hubquant_kernels.descend import BLOCK, descend
from hubquant_kernels.ggml_codebook import VALUES, nearest_places
from hubquant_kernels.gptq_block import gptq_block, gptq_codebook_block
from hubquant_kernels.native_columns import gptq_block as native_gptq_block
from torch import Tensor

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
SHAPES = [(1, 16), (17, 32), (300, 128)]


def factors(n: int) -> tuple[Tensor, Tensor]:
    """A hessian [n, n] and the upper factor of its inverse."""
    x = torch.randn(4 * n, n, generator=torch.Generator().manual_seed(n)) @ torch.randn(
        n, n, generator=torch.Generator().manual_seed(1)
    )
    hessian = x.T @ x / (4 * n * n) + torch.eye(n)
    return hessian, torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)


@needs_compiler
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("out", "width"), [(1, 16), (17, 32), (300, BLOCK), (20, 2 * BLOCK + 64)])
def test_descent(out: int, width: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(out)
    hessian, _ = factors(width)
    step, damp = torch.rand(out, groups, generator=generator) + 0.1, torch.rand(width, generator=generator)
    codes = torch.randint(0, 16, (out, width), generator=generator).float()
    errors = torch.randn(out, width, generator=generator) / 2
    fast, slow = ((codes.clone(), errors @ (hessian + torch.diag(damp))) for _ in range(2))
    descend(*fast, hessian, damp, step, 15, 3)
    monkeypatch.setenv("HUBQUANT_NATIVE", "0")
    descend(*slow, hessian, damp, step, 15, 3)
    assert same_but_ties(fast[0], slow[0])
    assert not torch.equal(fast[0], codes)
    for found, gradient in (fast, slow):
        moved = (found - codes) * step.repeat_interleave(width // groups, dim=1)
        check_gradient(gradient, errors, moved, hessian + torch.diag(damp))


def check_gradient(gradient: Tensor, errors: Tensor, moved: Tensor, damped: Tensor) -> None:
    """It is that of the errors after the move: sums of at most 4·width float32 terms, in whatever order, since a code may move
    there and back in each of three sweeps by less than the 15 steps between the ends."""
    size = (errors.abs().double() + 3 * 15 * 1.1) @ damped.abs().double()
    allowed = 4 * len(damped) * 2.0**-24 * size
    assert bool(((errors.double() - moved.double()) @ damped.double() - gradient.double()).abs().le(allowed).all())


@needs_compiler
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("out", "n"), SHAPES)
def test_gptq(out: int, n: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(out)
    _, factor = factors(n)
    weight = torch.randn(out, n, generator=generator)
    scale = torch.rand(out, 1, generator=generator) * 0.1 + 0.2
    zero = torch.full((out, 1), 8.0) if symmetric else torch.randint(0, 16, (out, 1), generator=generator).float()
    codes, errors = gptq_block(weight, factor, scale, zero, 15)
    monkeypatch.setenv("HUBQUANT_NATIVE", "0")
    slow_codes, slow_errors = gptq_block(weight, factor, scale, zero, 15)
    assert same_but_ties(codes, slow_codes)
    rows = (codes == slow_codes).all(1)
    assert bool(((errors - slow_errors).abs() <= rounding(weight, errors, factor))[rows].all())


def rounding(weight: Tensor, errors: Tensor, factor: Tensor) -> Tensor:
    """By how much two ways to the same errors may differ in float32. They are the solution of E·U = W − Q by substitution, so each
    is off by at most γ|E||U||U⁻¹| with γ = n·2⁻²⁴ (Higham 2002, Accuracy and Stability of Numerical Algorithms, theorem 8.5), and
    by what Q's product and the difference round, 2⁻²⁴(|W| + |Q|)|U⁻¹|, where |Q| ≤ |W| + |E||U|."""
    U, inverse = factor.abs().double(), torch.linalg.inv(factor.double()).abs()
    W, spread = weight.abs().double(), errors.abs().double() @ U
    return (2 * 2.0**-24 * (len(U) * spread + 2 * W + spread) @ inverse).float()


def same_but_ties(one: Tensor, other: Tensor) -> bool:
    """Sums of n ≤ 128 float32 terms in another order differ by some 1e-6: one code in 10,000 is as near to a tie, and takes the
    rest of its row along."""
    return float((one == other).all(1).float().mean()) > 0.95


@needs_compiler
def test_the_codebook() -> None:
    weight = torch.randn(40, 32, generator=torch.Generator().manual_seed(0)) * 50
    found = native_gptq_block(weight, torch.eye(32), torch.ones(40, 1), None, len(VALUES), VALUES)
    assert found is not None
    assert torch.equal(found[0], nearest_places(weight))


@needs_compiler
def test_gptq_on_the_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    _, factor = factors(32)
    generator = torch.Generator().manual_seed(1)
    weight, scale = torch.randn(40, 32, generator=generator), torch.rand(40, 1, generator=generator) * 0.01 + 0.01
    codes, errors = gptq_codebook_block(weight, factor, scale)
    monkeypatch.setenv("HUBQUANT_NATIVE", "0")
    slow_codes, slow_errors = gptq_codebook_block(weight, factor, scale)
    rows = (codes == slow_codes).all(1)
    # 32 sums in another order: rows with a code as near to a tie are one in a hundred
    assert int(rows.sum()) >= 38
    assert bool(((errors - slow_errors).abs() <= rounding(weight, errors, factor))[rows].all())


@pytest.mark.parametrize("native_code", ["0", "1"])
def test_a_dead_column_of_a_block_without_scale_keeps_its_code(native_code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBQUANT_NATIVE", native_code)
    codes = torch.full((3, 2), 4.0)
    descend(codes, torch.zeros(3, 2), torch.diag(torch.tensor([0.0, 1.0])), torch.zeros(2), torch.full((3, 1), 1e-30), 15, 2)
    assert torch.equal(codes, torch.full((3, 2), 4.0))


@pytest.mark.parametrize("native_code", ["0", "1"])
def test_a_column_whose_diagonal_has_no_inverse_keeps_its_code(native_code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1e-40 is a float32, and 1e40 is none."""
    monkeypatch.setenv("HUBQUANT_NATIVE", native_code)
    codes = torch.full((3, 2), 4.0)
    descend(codes, torch.full((3, 2), 1e-41), torch.diag(torch.tensor([1e-40, 1.0])), torch.zeros(2), torch.ones(3, 1), 15, 2)
    assert torch.equal(codes, torch.full((3, 2), 4.0))


@pytest.mark.parametrize("native_code", ["0", "1"])
def test_a_tie_goes_to_the_even_code(native_code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBQUANT_NATIVE", native_code)
    codes, gradient = torch.full((3, 1), 4.0), torch.tensor([[0.5], [1.5], [-0.5]])
    descend(codes, gradient, torch.ones(1, 1), torch.zeros(1), torch.ones(3, 1), 15, 1)
    assert codes.flatten().tolist() == [4.0, 6.0, 4.0]
    assert gradient.flatten().tolist() == [0.5, -0.5, -0.5]
