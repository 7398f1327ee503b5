"""AWQ's older layouts against their descriptions, written out element by element."""

import pytest
import torch
from hubquant_kernels.awq_gemv import dequantize_awq_gemv, dequantize_awq_gemv_fast, padded_groups
from hubquant_kernels.layers import AwqGemvFastLinear, AwqGemvLinear
from torch import Tensor

N_OUT, N_IN, GROUP = 8, 128, 32
GENERATOR = torch.Generator().manual_seed(0)
CODES = torch.randint(0, 16, (N_OUT, N_IN), generator=GENERATOR)
ZEROS = torch.randint(0, 16, (N_OUT, N_IN // GROUP), generator=GENERATOR)
SCALES = (0.02 * torch.rand(N_OUT, N_IN // GROUP, generator=GENERATOR) + 0.01).half()
GROUPS = torch.arange(N_IN) // GROUP


def signed(value: int, bits: int) -> int:
    return value - (value >> (bits - 1) << bits)


def padded(rows: Tensor) -> Tensor:
    wide = rows.new_zeros(N_OUT, padded_groups(N_IN, GROUP))
    wide[:, : rows.shape[1]] = rows
    return wide


def words(rows: Tensor) -> Tensor:
    """Eight codes to a word, the first in the lowest bits."""
    found = [
        [signed(sum(int(c) << (4 * k) for k, c in enumerate(row[i : i + 8])), 32) for i in range(0, len(row), 8)] for row in rows
    ]
    return torch.tensor(found, dtype=torch.int32)


def interleaved() -> Tensor:
    """[out/4, in] int16, four channels of one row to a word.

    64 channels of each of four rows follow each other; within 32 channels, channel 8a + 2b + c is at place 8b + 4c + a.
    """
    found = torch.zeros(N_OUT // 4, N_IN, dtype=torch.int16)
    for row in range(N_OUT):
        for channel in range(N_IN):
            inside = channel % 32
            a, b, c = inside // 8, inside % 8 // 2, inside % 2
            place = channel // 32 * 32 + 8 * b + 4 * c + a
            word = place // 64 * 64 + row % 4 * 16 + place % 64 // 4
            shifted = signed(int(CODES[row, channel]) << (4 * (place % 4)), 16)
            found[row // 4, word] |= shifted
    return found


def test_gemv_weights_are_those_of_the_layout() -> None:
    dense = dequantize_awq_gemv(words(CODES), words(padded(ZEROS)), padded(SCALES), GROUP)
    assert dense.dtype == torch.float32
    assert torch.equal(dense, (CODES - ZEROS[:, GROUPS]) * SCALES.float()[:, GROUPS])


def test_gemv_fast_weights_are_those_of_the_layout() -> None:
    shift = -(SCALES.float() * ZEROS).half()
    dense = dequantize_awq_gemv_fast(interleaved(), padded(shift).T.contiguous(), padded(SCALES).T.contiguous(), GROUP)
    assert dense.dtype == torch.float32
    assert torch.equal(dense, CODES * SCALES.float()[:, GROUPS] + shift.float()[:, GROUPS])


@pytest.mark.parametrize(
    ("n_in", "group_size", "groups"),
    [(128, 128, 8), (4096, 128, 32), (11008, 128, 88), (4096, 64, 64), (64, 64, 16), (192, 32, 32), (96, 16, 64), (5000, 5000, 8)],
)
def test_groups_are_padded_to_whole_blocks_of_words(n_in: int, group_size: int, groups: int) -> None:
    assert padded_groups(n_in, group_size) == groups


def test_other_group_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="groups of 16, 32, 64 or at least 128 channels, not 48"):
        padded_groups(96, 48)


@pytest.mark.parametrize("kind", [AwqGemvLinear, AwqGemvFastLinear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_layer_multiplies_with_the_decoded_weight(kind: type[AwqGemvLinear], dtype: torch.dtype) -> None:
    layer = kind(N_IN, N_OUT, GROUP, bias=True)
    if kind is AwqGemvFastLinear:
        layer.qweight, layer.scales = interleaved(), padded(SCALES).T.contiguous()
        layer.qzeros = -(layer.scales * padded(ZEROS).T).half()
    else:
        layer.qweight, layer.scales, layer.qzeros = words(CODES), padded(SCALES), words(padded(ZEROS))
    layer.bias.fill_(0.5)
    x = torch.randn(2, 3, N_IN, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    out = layer(x)
    weight = layer.decode(layer.qweight, layer.qzeros, layer.scales, GROUP)
    exact = x.double() @ weight.double().T + 0.5
    assert out.dtype == dtype
    # products and sums of float32, then the rounding of the sum and of adding the bias
    terms = x.abs().double() @ weight.abs().double().T + 0.5
    assert bool(((out.double() - exact).abs() <= (N_IN * 2.0**-24 + 2 * torch.finfo(dtype).eps) * terms).all())
    out.sum().backward()
    assert x.grad is not None
    reached = weight.sum(0).expand(2, 3, -1)
    torch.testing.assert_close(x.grad.float(), reached, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("operator", [dequantize_awq_gemv, dequantize_awq_gemv_fast])
def test_fakes_have_the_shape_of_the_real(operator: object) -> None:
    if operator is dequantize_awq_gemv:
        tensors = (words(CODES), words(padded(ZEROS)), padded(SCALES))
    else:
        tensors = (interleaved(), padded(SCALES).T.contiguous(), padded(SCALES).T.contiguous())
    torch.library.opcheck(operator, (*tensors, GROUP))  # type: ignore[arg-type]
