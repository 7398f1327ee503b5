import pytest
import torch

from hubquant.calibrate.statistics import SINK, InputStatistics, token_importance
from hubquant.quantize.gptq import DAMP_RATIO


def filled(x: torch.Tensor) -> InputStatistics:
    statistics = InputStatistics(x.shape[-1])
    for part in x.split(7):
        statistics.add(part)
    return statistics


def data(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(50, 6, generator=generator) * torch.tensor([1, 2, 4, 8, 0.1, 0])).to(dtype)


def test_the_sums() -> None:
    x = data()
    statistics = filled(x)
    exact = x.double().T @ x.double()
    # each entry sums 50 products, each rounded once and added in fp32
    bound = 50 * 2.0**-23 * (x.double().abs().T @ x.double().abs())
    assert bool(((statistics.hessian.double() - exact).abs() <= bound).all())
    torch.testing.assert_close(statistics.importance, (x * x).mean(0))
    assert statistics.n_tokens == 50 and statistics.dropped_rows == 0


def test_a_token_counts_by_its_importance_but_in_the_importance_matrix() -> None:
    x, importance = data(), torch.arange(50.0) ** 2
    statistics = InputStatistics(6)
    statistics.add(x, importance)
    # each entry sums 50 products of rows that were rounded once, each product rounded once and added in fp32
    exact = (x.double() * importance.double()[:, None]).T @ x.double()
    bound = (50 + 4) * 2.0**-23 * ((x.double().abs() * importance.double()[:, None]).T @ x.double().abs())
    assert bool(((statistics.hessian.double() - exact).abs() <= bound).all())
    torch.testing.assert_close(statistics.importance, (x * x).mean(0))
    assert statistics.n_tokens == 50


def test_long_tokens_are_important_and_all_others_alike() -> None:
    hidden = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(6))
    hidden /= hidden.norm(dim=-1, keepdim=True)
    assert token_importance(hidden).tolist() == [1.0] * 9
    lengths = torch.tensor([100.0, 1, 1, 1.01 * SINK, 0.99 * SINK, 1, 0, float("inf"), float("nan")])
    wanted = torch.tensor([100.0, 1, 1, 1.01 * SINK, 1, 1, 1, 1, 1])
    torch.testing.assert_close(token_importance(hidden * lengths[:, None]), wanted)
    assert token_importance(torch.zeros(1, 4, 8)).tolist() == [1.0] * 4


def test_rows_that_are_not_finite_are_dropped_and_counted() -> None:
    x = data()
    poisoned = torch.cat([x, torch.full((2, 6), float("nan")), torch.full((1, 6), float("inf"))])
    statistics = filled(poisoned[torch.randperm(53, generator=torch.Generator().manual_seed(0))])
    assert statistics.dropped_rows == 3 and statistics.n_tokens == 50
    torch.testing.assert_close(statistics.hessian, filled(x).hessian, rtol=1e-5, atol=1e-4)


def test_rows_whose_squares_overflow_are_dropped_and_counted() -> None:
    """1e20 is a float32, its square is none; of rows of 1e18 the tenth would be too many."""
    x = data()
    for large, dropped in ((1e20, 10), (1e18, 10), (1e12, 0)):
        statistics = filled(torch.cat([x, torch.full((10, 6), large)]))
        assert statistics.dropped_rows == dropped
        assert bool(torch.isfinite(statistics.hessian).all())


def test_batches_of_windows_are_rows() -> None:
    x = data().view(5, 10, 6)
    assert filled(x).n_tokens == 50


def test_scaled_is_what_scaled_inputs_give() -> None:
    x, s = data(), torch.tensor([1.0, 2.0, 0.5, 4.0, 0.25, 1.0])
    scaled, direct = filled(x).scaled(s), filled(x / s)
    torch.testing.assert_close(scaled.hessian, direct.hessian)


def test_output_error_is_that_of_the_outputs() -> None:
    x = data()
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(4))
    off = weight + 0.01 * torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    direct = ((x @ (off - weight).T) ** 2).sum() / ((x @ weight.T) ** 2).sum()
    assert abs(filled(x).output_error(weight, off) / float(direct) - 1) < 1e-4
    assert filled(x).output_error(weight, weight) == 0
    assert InputStatistics(6).output_error(weight, off) == 0, "no tokens, no error"


def test_few_tokens_are_damped_more() -> None:
    many, few = InputStatistics(64), InputStatistics(64)
    many.add(torch.randn(64 * 100, 64))
    few.add(torch.randn(8, 64))
    assert many.damp_ratio == pytest.approx(DAMP_RATIO, rel=0.02)
    assert few.damp_ratio == pytest.approx(9 * DAMP_RATIO)


def test_what_remains_of_a_channel_s_error_is_its_variance_given_the_quieter_ones() -> None:
    """R_jj² of the factor in falling order is the Schur complement: xᵢ² less what the channels after it can take back.

    That is vᵀAv of the damped matrix A, v = (1, −what they take back); an error E of A moves it by |v|ᵀ|E||v| and less. E is
    γ|R||Rᵀ| of the factorization (Higham 2002, theorem 10.3), γ = (n + 1)·2⁻²⁴, and 2⁻²⁴|A| of each of three roundings: the
    division by the largest, the damping and the product of the mean with its ratio; then R_jj is squared and multiplied back.
    """
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(400, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    x[:, 5] = 0
    statistics = filled(x)
    damped = statistics.hessian.double()
    damped += statistics.damp_ratio * damped.diagonal()[damped.diagonal() > 0].mean() * torch.eye(32)
    order = statistics.hessian.diagonal().argsort(descending=True)
    live = order[:-1]  # the silent channel is the last
    A, u = damped[live][:, live], 2.0**-24
    R = torch.linalg.cholesky(A.flip(0, 1)).flip(0, 1)
    off = 33 * u / (1 - 33 * u) * (R.abs() @ R.abs().T) + 3 * u * A.abs()
    found = statistics.remaining.double() * float(statistics.hessian.diagonal().amax())
    for place, channel in enumerate(live):
        after = slice(place + 1, None)
        v = torch.cat([torch.ones(1, dtype=torch.float64), -torch.linalg.solve(A[after, after], A[after, place])])
        expected = v @ A[place:, place:] @ v
        assert abs(found[channel] - expected) <= v.abs() @ off[place:, place:] @ v.abs() + 3 * u * expected
    assert found[5] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_rows_of_every_float_dtype(dtype: torch.dtype) -> None:
    """A loud row of float16 that counts 900 times is beyond float16, and not beyond the sums."""
    x = (torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) * 3000).to(dtype)
    found, expected = InputStatistics(64), InputStatistics(64)
    found.add(x, torch.full((8,), 900.0))
    expected.add(x.float(), torch.full((8,), 900.0))
    assert found.n_tokens == 8 and found.dropped_rows == 0
    # a row of bfloat16 is multiplied in it, by 30, which rounds it by 2⁻⁹; sums of 8 products in float32; |h_ij|² ≤ h_ii h_jj
    allowed = (1 + 2.0**-9) ** 2 - 1 + 18 * 2.0**-24 if dtype == torch.bfloat16 else 0.0
    assert bool(((found.hessian - expected.hessian).abs() <= allowed * expected.hessian.diagonal().max()).all())
    assert torch.equal(token_importance(x), token_importance(x.float()))
