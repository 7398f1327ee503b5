"""The searches against their definition, written as plain loops over one column."""

import pytest
import torch
from hubquant_kernels import ggml_codebook as codebook
from hubquant_kernels import ggml_search as search
from torch import Tensor

N = 64


def columns(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size // 16, 16, N, generator=torch.Generator().manual_seed(seed))


def weights_like(x: Tensor) -> Tensor:
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(9)) + 0.1


@pytest.mark.parametrize("size", [16, 32, 256])
def test_column_sums_run_in_order(size: int) -> None:
    x = columns(size)
    expected = torch.zeros(N)
    for row in x.flatten(0, 1):
        expected = expected + row
    assert torch.equal(search.ColumnSum(x).of(x), expected)
    assert torch.equal(search.ColumnSum(x).of_product(x, torch.ones_like(x)), expected)


def test_divided_rounds_once() -> None:
    x = torch.rand(1000) + 0.1
    assert torch.equal(search.divided(63.0, x), (63.0 / x.double()).float())


def test_keep_replaces_whole_columns() -> None:
    kept, trial = torch.tensor([[1.0, 2.0, torch.inf], [-0.0, 5.0, 6.0]]), torch.tensor([[torch.nan, 8.0, 9.0], [1.0, 2.0, 3.0]])
    search.keep(kept, trial, torch.tensor([False, True, True]))
    assert kept.tolist() == [[1.0, 8.0, 9.0], [0.0, 2.0, 3.0]]


def test_signed_peak_is_the_first_of_equals() -> None:
    x = torch.tensor([[1.0, -3.0, 2.0], [-1.0, 3.0, 2.0], [0.5, 1.0, -2.5]])
    assert search.signed_peak(x).tolist() == [1.0, -3.0, -2.5]


def error(x: Tensor, w: Tensor, approximation: Tensor) -> Tensor:
    return (w * (x - approximation).square()).flatten(0, 1).sum(0)


@pytest.mark.parametrize("levels", [3, 15, 31])
def test_affine_search_beats_the_range_of_the_column(levels: int) -> None:
    x = columns(32)
    w = weights_like(x)
    fit = search.affine_search(x, w, levels, -0.9, 0.05, 36)
    codes = ((x - fit.origin) * fit.iscale).round().clamp(0, levels)
    low, high = x.amin((0, 1)).clamp(max=0), x.amax((0, 1))
    step = (high - low) / levels
    plain = ((x - low) / step).round() * step + low
    found = error(x, w, codes * fit.scale - fit.minimum)
    assert bool((found <= error(x, w, plain) * (1 + 1e-5)).all()) and found.sum() < 0.97 * error(x, w, plain).sum()
    assert bool((fit.minimum >= 0).all())


def test_affine_search_by_absolute_error_lowers_it() -> None:
    x = columns(16)
    w = x.abs()
    fit = search.affine_search(x, w, 3, -0.5, 0.1, 15, absolute=True)
    start = search.affine_search(x, w, 3, -0.5, 0.1, -1, absolute=True)

    def total(f: search.AffineFit) -> Tensor:
        codes = ((x - f.origin) * f.iscale).round().clamp(0, 3)
        return (w * (x - codes * f.scale + f.minimum).abs()).flatten(0, 1).sum(0)

    assert bool((total(fit) <= total(start) * (1 + 1e-5)).all()) and total(fit).sum() < 0.95 * total(start).sum()


def test_symmetric_search_finds_the_best_of_its_trials() -> None:
    x = columns(16)
    w = weights_like(x)
    fit = search.symmetric_search(x, w, 8)
    peak = search.signed_peak(x.flatten(0, 1))
    best = torch.full((N,), torch.inf)
    for step in range(-9, 10):
        codes = (x * -(8 + 0.1 * step) / peak).round().clamp(-8, 7)
        scale = (w * x * codes).sum((0, 1)) / (w * codes * codes).sum((0, 1))
        best = torch.minimum(best, error(x, w, codes * scale))
    codes = (x * fit.iscale).round().clamp(-8, 7)
    torch.testing.assert_close(error(x, w, codes * fit.scale), best, rtol=1e-4, atol=0)


def test_codebook_search_finds_the_best_of_its_trials() -> None:
    x = columns(32)
    w = weights_like(x)
    scale = search.codebook_search(x, w)
    peak = search.signed_peak(x.flatten(0, 1))
    values = torch.tensor(codebook.VALUES, dtype=torch.float32)
    best = torch.zeros(N)
    for numerator in (127, *range(-134, -119)):
        scaled = x * numerator / peak
        codes = values[(scaled[..., None] - values).abs().argmin(-1)]
        best = torch.maximum(best, (w * x * codes).sum((0, 1)).square() / (w * codes * codes).sum((0, 1)))
    codes = codebook.nearest_values(x / scale)
    # what the search maximises is what the fit takes off Σwx²; rounding anew under the fitted scale takes off no less
    taken = (w * x * x).sum((0, 1)) - error(x, w, codes * scale)
    assert bool((taken >= best * (1 - 1e-4)).all())


def test_nearest_values_of_the_codebook() -> None:
    x = torch.cat((torch.linspace(-200, 200, 40001), torch.tensor([-115.5, -16.0, 7.0, 101.0, torch.inf, -torch.inf])))
    values = torch.tensor(codebook.VALUES, dtype=torch.float32)
    distance = (x[:-2, None] - values).abs()
    nearest = 15 - distance.flip(1).argmin(1)  # of two as near the upper one
    assert torch.equal(codebook.nearest_places(x)[:-2].long(), nearest)
    assert torch.equal(codebook.nearest_values(x), values[codebook.nearest_places(x).long()])
    assert codebook.nearest_values(x)[-2:].tolist() == [113.0, -127.0]


def test_columns_without_range_have_no_scale() -> None:
    x = torch.zeros(1, 16, N)
    assert search.symmetric_search(x, x, 8).scale.abs().max() == 0
    constant = torch.full_like(x, -0.5)
    fit = search.affine_search(constant, torch.ones_like(x), 15, -0.9, 0.05, 36)
    assert fit.scale.abs().max() == 0 and bool((fit.minimum == 0.5).all())
    codes, scale = search.positive_search(torch.zeros(8, N), torch.ones(8, N), 63)
    assert codes.abs().max() == 0 and scale.abs().max() == 0


def test_positive_search_improves_on_rounding_by_the_largest() -> None:
    x = torch.rand(8, N, generator=torch.Generator().manual_seed(1))
    w = torch.rand(8, N, generator=torch.Generator().manual_seed(2))
    codes, scale = search.positive_search(x, w, 15)
    assert bool(((codes >= 0) & (codes <= 15) & (codes == codes.round())).all())
    step = x.amax(0) / 15
    plain = (w * (x - (x / step).round() * step).square()).sum(0)
    found = (w * (x - codes * scale).square()).sum(0)
    assert bool((found <= plain * (1 + 1e-5)).all()) and found.sum() < 0.9 * plain.sum()
