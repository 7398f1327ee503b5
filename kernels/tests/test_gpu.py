"""Every operator on a GPU, as it is dispatched there, against its definition on the CPU or float64: sizes that models have, sizes
that fill no tile, batches, every dtype. Skipped where there is no GPU; tests of small cases are in tests/kernels."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hubquant_kernels import layers
from hubquant_kernels.awq_search import awq_losses, rounding_error
from hubquant_kernels.descend import descend
from hubquant_kernels.dispatch import launcher, usable
from hubquant_kernels.divergence import divergence, divergence_of_heads
from hubquant_kernels.ggml_dequantize import ggml_dequantize
from hubquant_kernels.ggml_matmul import ggml_matmul, ggml_matmul_experts
from hubquant_kernels.ggml_quantize import ggml_quantize
from hubquant_kernels.gptq_block import gptq_block, gptq_codebook_block, gptq_group
from hubquant_kernels.grid import fit_group, round_to_grid
from hubquant_kernels.hessian import accumulate_hessian
from hubquant_kernels.int4_matmul import dequantize_awq, dequantize_gptq, matmul_awq, matmul_gptq
from hubquant_kernels.pack import repack_words, round_and_pack
from torch import Tensor

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("triton") is None, reason="no GPU is visible to torch, or triton is missing"
)
UNIT = 2.0**-24  # unit roundoff of float32
HALF = 2.0**-11  # of float16
ENCODED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")


@pytest.fixture(autouse=True)
def by_the_kernels() -> Iterator[None]:
    """The definition would pass these tests too: a launcher must have been asked for."""
    assert usable(torch.zeros(1, device="cuda")), "this GPU runs the definitions"
    before = launcher.cache_info()
    yield
    after = launcher.cache_info()
    assert (after.hits, after.misses) != (before.hits, before.misses), "no Triton kernel was launched"


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cuda(*tensors: Any) -> tuple[Any, ...]:
    return tuple(t.cuda() if isinstance(t, Tensor) else t for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (65, 100), (513, 2047), (2048, 2048), (300, 4100)])
def test_hessian(tokens: int, width: int, dtype: torch.dtype) -> None:
    """γ_n Σ|x||x| for n = tokens + 2 roundings of 2u each (tensor cores may cut where they sum), and 4u more for each product of
    float32, which is made of three of TF32 with 2⁻²² left out twice."""
    x = (normal(tokens, width, seed=width) + 0.5) * torch.exp(2 * normal(width, seed=1))
    x = x.to(dtype).cuda()
    hessian = torch.zeros(width, width, device="cuda")
    for _ in range(2):
        accumulate_hessian(hessian, x)
    exact = 2 * (x.double().T @ x.double())
    bound = (2 * (tokens + 2) + 8 * (dtype == torch.float32)) * UNIT * 2 * (x.double().abs().T @ x.double().abs())
    error = (hessian.double() - exact).abs()
    assert bool((error <= bound).all()), f"{float((error / bound.clamp_min(1e-300)).max()):.2f} of the bound"


def test_hessian_of_float32_is_far_better_than_tf32() -> None:
    """TF32 has 11 bits: its error is about 2⁻¹² / sqrt(tokens) of a random sum's terms. Ours is within float32's own."""
    x = normal(1024, 2048).cuda()
    exact = x.double().T @ x.double()
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    tf32 = x.T @ x
    torch.backends.cuda.matmul.allow_tf32 = before
    ours = torch.zeros(2048, 2048, device="cuda")
    accumulate_hessian(ours, x)
    found, its = (float((h.double() - exact).norm() / exact.norm()) for h in (ours, tf32))
    assert found < its / 64


def problem(batch: int, out: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, factors and metrics of a batch of GPTQ's blocks, of real damped Hessians of correlated inputs."""
    x = normal(batch, 3 * n, n, seed=n).double() @ normal(n, n, seed=1).double()
    hessian = x.mT @ x
    hessian += 0.05 * hessian.diagonal(dim1=-2, dim2=-1).mean() * torch.eye(n, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    return 0.02 * normal(batch, out, n, seed=2), factor.float(), torch.linalg.inv(factor).float()


@pytest.mark.parametrize(("batch", "out", "n"), [(1, 4096, 128), (3, 77, 128), (2, 33, 48)])
def test_gptq_block(batch: int, out: int, n: int) -> None:
    weight, factor, _ = problem(batch, out, n)
    scale, zero = weight.abs().amax(-1, keepdim=True) / 7.5, torch.full((batch, out, 1), 8.0)
    check_columns(gptq_block(*cuda(weight, factor, scale, zero), 15), gptq_block(weight, factor, scale, zero, 15))


def check_columns(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """The same codes but where torch fuses a product into its sum, and a row that differs goes on differing."""
    (codes, errors), (expected, their_errors) = (o.cpu() for o in ours), theirs
    assert float((codes == expected).float().mean()) >= 0.995
    same = (codes == expected).all(dim=-1)
    assert bool(same.any())
    assert torch.allclose(errors[same], their_errors[same], rtol=1e-3, atol=1e-4 * float(errors.abs().max()))


def test_gptq_codebook_block() -> None:
    weight, factor, _ = problem(1, 4096, 32)
    arguments = weight[0], factor[0], weight[0].abs().amax(-1, keepdim=True) / 127
    check_columns(gptq_codebook_block(*cuda(*arguments)), gptq_codebook_block(*arguments))


@pytest.mark.parametrize(("out", "width", "groups"), [(4096, 1024, 8), (65, 320, 1)])
def test_descend(out: int, width: int, groups: int) -> None:
    """As good as the CPU's, and the gradient is that of the errors then."""
    x = normal(3 * width, width, seed=1)
    hessian, damp, step = x.T @ x / width, torch.full((width,), 0.01), 0.5 + normal(out, groups, seed=2).abs()
    codes, errors = (8 + 4 * normal(out, width, seed=3)).round().clamp(0, 15), normal(out, width, seed=4)
    gradient = errors @ (hessian + torch.diag(damp))
    ours, theirs = (codes.cuda(), gradient.cuda()), (codes.clone(), gradient.clone())
    descend(*ours, *cuda(hessian, damp, step), 15, 3)
    descend(*theirs, hessian, damp, step, 15, 3)
    steps = step.repeat_interleave(width // groups, 1)
    left, their_left = (errors.double() - ((found.cpu() - codes) * steps).double() for found in (ours[0], theirs[0]))
    damped = (hessian + torch.diag(damp)).double()
    loss, their_loss = (float((e @ damped * e).sum()) for e in (left, their_left))
    assert abs(loss / their_loss - 1) < 2 * HALF
    size = (errors.abs().double() + 3 * 15 * step.max()) @ damped.abs()
    assert bool(((left @ damped - ours[1].cpu()).abs() <= 4 * width * UNIT * size).all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("batch", "out", "n"), [(1, 512, 128), (2, 90, 64)])
def test_gptq_group_and_fit_group(batch: int, out: int, n: int, symmetric: bool) -> None:
    """Losses of the scales found are the definition's on average: single rows may end elsewhere, where two are equally good."""
    weight, factor, metric = problem(batch, out, n)
    seen = torch.ones(batch, n, dtype=torch.bool)
    codes, errors, _, zero = gptq_group(*cuda(weight, factor, metric, seen), 4, symmetric)
    diagonal = metric.diagonal(dim1=-2, dim2=-1).contiguous()
    alone, its_zero = fit_group(*cuda(weight, diagonal), 4, symmetric)
    assert torch.equal(zero, its_zero)
    assert int(codes.max()) <= 15

    def loss(scale: Tensor, zero: Tensor) -> Tensor:
        return (((round_to_grid(weight, scale, zero, 15) - zero) * scale - weight) * diagonal[:, None]).double().norm(dim=-1)

    ratio = loss(alone.cpu(), its_zero.cpu()) / loss(*fit_group(weight, diagonal, 4, symmetric))
    assert abs(float(ratio.mean()) - 1) < 2 * HALF
    _, theirs, _, _ = gptq_group(weight, factor, metric, seen, 4, symmetric)
    assert abs(float((errors.cpu().norm(dim=-1) / theirs.norm(dim=-1)).mean()) - 1) < 2 * HALF


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("out", "width", "group"), [(300, 1024, 128), (65, 192, 32)])
def test_awq_losses(out: int, width: int, group: int, symmetric: bool) -> None:
    """γ_n Σ|Δ||H||Δ| for products of three TF32 products in sums that may be cut: 2u for each."""
    weight, x = 0.02 * normal(out, width), normal(2 * width, width, seed=1) * torch.exp(normal(width, seed=2))
    scales = torch.exp(normal(3, width, seed=3))
    losses = awq_losses(*cuda(weight, x.T @ x, scales), 4, group, symmetric)
    for s, loss in zip(scales, losses, strict=True):
        delta, hessian = rounding_error(weight, s, 4, group, symmetric).double(), (x.T @ x).double()
        exact = float(((delta @ hessian) * delta).sum())
        size = float(((delta.abs() @ hessian.abs()) * delta.abs()).sum())
        assert abs(float(loss) - exact) <= (2 * width + out + 6) * 2 * UNIT * size


def words(*shape: int, seed: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int32)


def packed(layout: str, n_in: int, n_out: int, group: int, bits: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    scales = (0.02 * normal(n_in // group, n_out, seed=9)).half()
    if layout == "gptq":
        return words(n_in * bits // 32, n_out, seed=1), words(n_in // group, n_out * bits // 32, seed=2), scales
    return words(n_in, n_out // 8, seed=3), words(n_in // group, n_out // 8, seed=4), scales


@pytest.mark.parametrize("layout", ["gptq", "awq"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("n_in", "n_out", "group"), [(4096, 4096, 128), (1024, 4104, 64), (640, 264, 32)])
def test_packed_products(layout: str, dtype: torch.dtype, n_in: int, n_out: int, group: int) -> None:
    """Codes times activations are exact; each of the `in` sums may be cut (2u) and then the result is rounded; where the weight
    is decoded first it is rounded to x's type too."""
    tensors = packed(layout, n_in, n_out, group)
    decode, product = (dequantize_gptq, matmul_gptq) if layout == "gptq" else (dequantize_awq, matmul_awq)
    rest = (None, 4, 1) if layout == "gptq" else ()
    dense = decode(*tensors, *rest)
    assert torch.equal(decode(*cuda(*tensors), *rest).cpu(), dense)
    exact_dense, size = dense.double().cuda(), dense.double().abs().cuda()
    unit = torch.finfo(dtype).eps / 2
    for m in (1, 7, 16, 17, 33, 64, 128, 129, 300):
        x = normal(m, n_in, seed=m, dtype=dtype).cuda()
        out = product(x, *cuda(*tensors), *rest)
        exact, terms = x.double() @ exact_dense.T, x.double().abs() @ size.T
        bound = ((n_in + 2) * 2 * UNIT + unit) * terms + unit * exact.abs() + torch.finfo(dtype).smallest_normal
        assert out.dtype == dtype
        assert bool(((out.double() - exact).abs() <= bound).all()), m


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_other_widths_and_act_order_decode_bit_for_bit(bits: int) -> None:
    tensors = packed("gptq", 1024, 512, 128, bits)
    g_idx = torch.randint(0, 8, (1024,), generator=torch.Generator().manual_seed(6)).to(torch.int32)
    assert torch.equal(dequantize_gptq(*cuda(*tensors, g_idx), bits, 1).cpu(), dequantize_gptq(*tensors, g_idx, bits, 1))


@pytest.mark.parametrize(("layout", "bits"), [("gptq", 2), ("gptq", 3), ("gptq", 4), ("gptq", 8), ("awq", 4)])
def test_packing(layout: str, bits: int) -> None:
    weight, scales = normal(264, 1152), (0.02 * normal(264, 9, seed=1)).half()
    zeros = torch.randint(0, 2**bits, (264, 9), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    found = round_and_pack(*cuda(weight, scales, zeros), bits, layout).cpu()
    assert torch.equal(found, round_and_pack(weight, scales, zeros, bits, layout))
    if bits == 4:
        other = "awq" if layout == "gptq" else "gptq"
        assert torch.equal(repack_words(found.cuda(), other).cpu(), round_and_pack(weight, scales, zeros, 4, other))


@pytest.mark.parametrize("name", ENCODED)
def test_ggml_blocks(name: str) -> None:
    """About the definition's error (it keeps ggml's own search too, which the kernels leave out), decoded bit for bit, and
    products from the bytes: float32 sums of `in` terms up to 13 times the row's largest weight."""
    weight, importance = 0.02 * normal(70, 1024), torch.rand(1024, generator=torch.Generator().manual_seed(1)) ** 4

    def error(data: Tensor) -> float:
        return float(((ggml_dequantize(data, name) - weight).double().square() * importance).sum())

    data = ggml_quantize(*cuda(weight, importance), name, "best").cpu()
    assert error(data) <= 1.02 * error(ggml_quantize(weight, importance, name, "best"))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(ggml_dequantize(data.cuda(), name, dtype).cpu(), ggml_dequantize(data, name, dtype))
        dense, unit = ggml_dequantize(data, name).double().cuda(), torch.finfo(dtype).eps / 2
        for m in (1, 3, 8, 9, 40):
            x = normal(m, 1024, seed=m, dtype=dtype).cuda()
            exact = x.double() @ dense.T
            terms = x.double().abs() @ (dense.abs() + 12 * dense.abs().amax(1, keepdim=True)).T
            # rows beyond a few meet the weight in x's type
            bound = (1028 * 2 * UNIT + unit * (m > 8)) * terms + unit * exact.abs() + 2 * UNIT
            found = ggml_matmul(x, data.cuda(), name)
            assert bool(((found.double() - exact).abs() <= bound).all()), (dtype, m)


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_ggml_experts(tokens: int) -> None:
    data = torch.stack([ggml_quantize(normal(96, 512, seed=e), None, "Q4_K", "reference") for e in range(5)])
    experts = torch.randint(0, 5, (tokens, 2), generator=torch.Generator().manual_seed(1))
    x = normal(tokens, 512)
    found = ggml_matmul_experts(*cuda(x, data, experts), "Q4_K").cpu()
    assert torch.allclose(found, ggml_matmul_experts(x, data, experts, "Q4_K"), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_divergence(dtype: torch.dtype) -> None:
    """Rounding of logits' exponentials and of their sum: (3 spread + V) u in each log-probability, twice in the divergence."""
    base, vocabulary = normal(33, 32003, dtype=dtype) * 3, 32003
    other, targets = (base + 0.2 * normal(33, vocabulary, seed=1)).to(dtype), torch.arange(33) * 900
    nll, kl, same = (t.cpu() for t in divergence(*cuda(base, other, targets)))
    p, q = torch.log_softmax(base.double(), 1), torch.log_softmax(other.double(), 1)
    one = UNIT * (3 * 40 + vocabulary + 16)
    assert float((nll + q.gather(1, targets[:, None])[:, 0]).abs().max()) <= one
    assert float((kl - (p.exp() * (p - q)).sum(1)).abs().max()) <= 4 * one
    assert torch.equal(same, base.float().argmax(1) == other.float().argmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_divergence_of_heads(dtype: torch.dtype) -> None:
    """As of the logits in float64, whose own error is that of float32 sums of `width` exact products."""
    hidden, theirs = (normal(70, 320, seed=s, dtype=dtype) for s in (0, 1))
    head, their_head = (0.1 * normal(5003, 320, seed=s).to(dtype) for s in (2, 3))
    targets = torch.arange(70) * 7
    found = divergence_of_heads(*cuda(hidden, head, theirs, their_head, targets))
    base, other = hidden.double() @ head.double().T, theirs.double() @ their_head.double().T
    pairs = ((hidden, head), (theirs, their_head))
    size = float(max((a.double().abs() @ b.double().abs().T).max() for a, b in pairs))
    one = UNIT * (3 * 40 + 5003 + 16) + 2 * 322 * 2 * UNIT * size
    p, q = torch.log_softmax(base, 1), torch.log_softmax(other, 1)
    assert float((found[0].cpu() + q.gather(1, targets[:, None])[:, 0]).abs().max()) <= one
    assert float((found[1].cpu() - (p.exp() * (p - q)).sum(1)).abs().max()) <= 2 * one * (1 + float((p - q).abs().max()))


@pytest.mark.parametrize("order", ["in order", "act order"])
def test_layers_are_those_of_the_cpu(order: str) -> None:
    """Filled on the CPU, moved, prepared there, compiled; and their words are the file's again."""
    layer = layers.GptqLinear(512, 256, 4, 128, 1, bias=True)
    qweight, qzeros, scales = packed("gptq", 512, 256, 128)
    layer.load_state_dict({"qweight": qweight, "qzeros": qzeros, "scales": scales, "bias": normal(256, dtype=torch.float16)}, False)
    if order == "act order":
        layer.g_idx = layer.g_idx[torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    x = normal(5, 512, dtype=torch.float16)
    expected = layer(x)
    layer.cuda().prepare()
    assert torch.allclose(layer(x.cuda()).cpu(), expected, rtol=4 * HALF, atol=4 * HALF * float(expected.abs().max()))
    assert torch.equal(layer.state_dict()["qweight"].cpu(), qweight)
    compiled = torch.compile(layer, fullgraph=True)
    assert torch.equal(compiled(x.cuda()), layer(x.cuda()))
