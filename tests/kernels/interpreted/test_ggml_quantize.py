"""The encoding kernels against the definition by weighted error, and their bytes against gguf's decoders.

Sums run in another order than the definition's, so that of two trials about as good the other may be taken: bytes differ,
errors hardly. The definition keeps ggml's own search where that is better, which the kernels do not try.
"""

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from hubquant_kernels.ggml_dequantize import ggml_dequantize
from hubquant_kernels.ggml_quantize import ggml_quantize as definition
from hubquant_kernels.ggml_types import GGML_TYPES
from hubquant_kernels.gpu import ggml_quantize as kernel
from torch import Tensor

# how much more error than the definition's best: what leaving ggml's search out costs on these weights, rounded up
LEFT_OUT = 1.01
N = 512


def gaussian(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, N, generator=torch.Generator().manual_seed(seed)) * 0.02


def importance() -> Tensor:
    return torch.rand(N, generator=torch.Generator().manual_seed(1)) ** 4


def error(weight: Tensor, data: Tensor, name: str, w: Tensor | None = None) -> float:
    squares = (ggml_dequantize(data, name) - weight).double().square()
    return float((squares if w is None else squares * w).sum())


def assert_as_good(weight: Tensor, name: str, w: Tensor | None, left_out: float = LEFT_OUT) -> None:
    data = kernel.ggml_quantize(weight, w, name, "best")
    found = error(weight, data, name, w)
    assert found <= left_out * error(weight, definition(weight, w, name, "best"), name, w)
    assert found <= error(weight, definition(weight, w, name, "reference"), name, w)
    decoded = torch.from_numpy(gguf.dequantize(data.numpy(), GGMLQuantizationType(GGML_TYPES[name].value)))
    torch.testing.assert_close(decoded, ggml_dequantize(data, name), rtol=0, atol=0)


@pytest.mark.parametrize("name", kernel.KERNELS)
@pytest.mark.parametrize("w", [None, importance()], ids=["plain", "importance"])
def test_error_is_the_definitions(name: str, w: Tensor | None) -> None:
    assert_as_good(gaussian(8), name, w)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q2_K", "Q3_K", "IQ4_XS"])
def test_heavy_tails_and_decades(name: str) -> None:
    torch.manual_seed(3)
    tails = torch.distributions.StudentT(3.0).sample((4, N)) * 0.02
    weight = torch.cat((tails, gaussian(4) * torch.exp(2 * gaussian(4, seed=5) / 0.02)))
    assert_as_good(weight, name, importance(), left_out=1.15)  # a few super-blocks make up most of the error


@pytest.mark.parametrize("name", kernel.KERNELS)
def test_edges(name: str) -> None:
    """Zeros are kept; constants, signs of one magnitude, one weight, scales that are denormal or huge."""
    rows = torch.zeros(8, N)
    rows[1], rows[2], rows[3, 7] = 0.37, -0.37, 1.0
    rows[4] = torch.where(gaussian(1)[0] > 0, 0.25, -0.25)
    rows[5], rows[6], rows[7] = gaussian(1)[0] * 1e-30, gaussian(1)[0] * 1e-4, gaussian(1)[0].clamp(-0.05, 0.05) * 1e6
    data = kernel.ggml_quantize(rows, None, name, "best")
    decoded = ggml_dequantize(data, name)
    assert decoded.isfinite().all() and decoded[0].abs().max() == 0
    best = ggml_dequantize(definition(rows, None, name, "best"), name)
    squares, best_squares = (decoded - rows).double().square().sum(1), (best - rows).double().square().sum(1)
    # of rows of two values many trials are exact before scales are rounded: to 6 bits at worst, so within half of 1/63
    slack = torch.tensor([0, *[126.0**-2] * 4, 0, 0, 0]) * rows.double().square().sum(1)
    slack[6] = 0.1 * best_squares[6]  # there are few denormal scales to choose from, and which is met is luck
    assert bool((squares <= LEFT_OUT * best_squares + slack).all())


@pytest.mark.parametrize("name", ["Q5_0", "Q4_1", "Q2_K", "Q6_K"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(name: str, dtype: torch.dtype) -> None:
    weight = gaussian(4).to(dtype)
    data = kernel.ggml_quantize(weight, importance(), name, "best")
    assert torch.equal(data, kernel.ggml_quantize(weight.float(), importance(), name, "best"))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_importance_of_nothing_is_none(name: str) -> None:
    weight = gaussian(4)
    data = kernel.ggml_quantize(weight, None, name, "best")
    assert torch.equal(kernel.ggml_quantize(weight, torch.zeros(N), name, "best"), data)
    assert torch.equal(kernel.ggml_quantize(weight, torch.ones(N), name, "best"), data)
    assert torch.equal(kernel.ggml_quantize(weight.T.contiguous().T, None, name, "best"), data)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_importance_is_that_of_the_column(name: str) -> None:
    """Each row is encoded as if it were alone, whichever program and place it falls to."""
    weight, w = gaussian(24, seed=2), importance()
    data = kernel.ggml_quantize(weight, w, name, "best")
    for row in (1, 10, 23):
        assert torch.equal(kernel.ggml_quantize(weight[row : row + 1], w, name, "best"), data[row : row + 1])


@pytest.mark.parametrize("name", ["Q8_0", "Q5_1", "Q5_K", "Q3_K", "IQ4_XS"])
def test_nothing_is_written_beyond_the_last_block(name: str, device: str) -> None:
    kind, (launched, constants) = GGML_TYPES[name], kernel.KERNELS[name]
    x = gaussian(1)[:, : kind.block_size].to(device)
    data = torch.full((40, kind.type_size), 0xA5, dtype=torch.uint8, device=device)
    per_row = kind.block_size // constants.get("SIZE", kind.block_size)
    launched[(1,)](x, x, data, data.view(torch.int16), 1, per_row, **kernel._constants(name, False), num_stages=2)
    assert bool((data[1:] == 0xA5).all()) and error(x, data[:1], name) < 0.1 * float(x.square().sum())


def test_other_modes_and_types_go_to_the_definition() -> None:
    weight = gaussian(2)
    for name, mode in (("Q4_K", "reference"), ("TQ2_0", "best"), ("F16", "best")):
        assert torch.equal(kernel.ggml_quantize(weight, None, name, mode), definition(weight, None, name, mode))
    assert kernel.ggml_quantize(weight[:0], None, "Q4_K", "best").shape == (0, 288)


def test_rows_that_are_no_blocks_are_named() -> None:
    with pytest.raises(ValueError, match=r"Q4_K takes rows of whole blocks of 256, not \(2, 300\)"):
        kernel.ggml_quantize(torch.zeros(2, 300), None, "Q4_K", "best")
    with pytest.raises(ValueError, match=r"not \(2, 512\) with importance \(500,\)"):
        kernel.ggml_quantize(torch.zeros(2, 512), torch.ones(500), "Q4_K", "best")
