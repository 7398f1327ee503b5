"""Against gguf's decoders (bit for bit), gguf's encoders, and ggml's own (libgguf, compiled C)."""

import re
from importlib.resources import as_file, files

import gguf
import libgguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors import safe_open
from torch import Tensor

from hubquant.errors import BadModel, UsageError
from hubquant.quantize.ggml import GGML_TYPES, NEEDS_IMPORTANCE, decode, encode, fallback, row_bytes
from hubquant.quantize.iquant import IQ_TYPES

BLOCK_TYPES = [name for name, kind in GGML_TYPES.items() if kind.block_size > 1]
OURS = [name for name in BLOCK_TYPES if name not in IQ_TYPES]
# ggml computes the neighbours in the larger lattices at their first use, which takes seconds
IQ_PARAMETERS = [pytest.param(t, marks=[] if t in ("IQ3_S", "IQ3_XXS", "IQ2_XXS") else pytest.mark.slow) for t in IQ_TYPES]
BY_GGUF = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0", "MXFP4"]
REAL = ["model.layers.0.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight"]


@pytest.fixture(scope="module")
def real_weights() -> list[Tensor]:
    with as_file(files("hubquant") / "demo/data/model/model.safetensors") as path, safe_open(path, framework="pt") as model:
        return [model.get_tensor(name)[:128].float() for name in REAL]


def synthetic() -> Tensor:
    """Rows of every kind that has its own way through an encoder [rows, 512]."""
    torch.manual_seed(7)
    n = 512
    outliers = torch.randn(8, n) * 0.01
    outliers[:, 5], outliers[:, 300] = 3.0, -7.0
    with_zeros = torch.randn(8, n) * 0.01
    with_zeros[::2, :16], with_zeros[1::2, :32], with_zeros[3, :256] = 0, 0, 0
    one_weight = torch.zeros(4, n)
    one_weight[:, 7] = 1.0
    kinds = {
        "gaussian": torch.randn(32, n) * 0.02,
        "heavy tails": torch.distributions.StudentT(3.0).sample((32, n)) * 0.02,
        "bfloat16": torch.randn(16, n).bfloat16().float(),
        "zero": torch.zeros(2, n),
        "constant": torch.full((2, n), 0.37),
        "negative constant": torch.full((2, n), -0.37),
        "positive": torch.rand(8, n) + 0.5,
        "both signs of one magnitude": torch.where(torch.rand(8, n) > 0.5, 0.25, -0.25),
        "whole numbers": torch.randint(-3, 4, (8, n)).float(),
        "outliers": outliers,
        "zeros in it": with_zeros,
        "one weight": one_weight,
        "tiny": torch.randn(4, n) * 1e-20,
        "large": torch.randn(8, n) * 1000,
        "twelve decades": (torch.randn(16, n) * torch.exp(4 * torch.randn(16, n))).clamp(-6e4, 6e4),
    }
    return torch.cat(list(kinds.values()))


def importance_for(columns: int, seed: int = 3) -> Tensor:
    """Spread over four decades, as mean squared inputs are."""
    return torch.exp(2 * torch.randn(columns, generator=torch.Generator().manual_seed(seed)))


def from_ggml(weight: Tensor, name: str, importance: Tensor | None) -> Tensor:
    data = libgguf.quantize_rows(weight.numpy(), GGML_TYPES[name].value, None if importance is None else importance.numpy())
    return torch.from_numpy(data)


def block_errors(data: Tensor, weight: Tensor, name: str, importance: Tensor | None) -> Tensor:
    """Σ importance·error² of each block, in float64."""
    squares = (decode(data, name).double() - weight.double()).square()
    weighted = squares if importance is None else squares * importance.double()
    return weighted.view(-1, GGML_TYPES[name].block_size).sum(1)


def random_blocks(name: str, rows: int, blocks: int) -> np.ndarray:
    """Random bytes, but for the float16 scales, which are random finite numbers."""
    rng = np.random.default_rng(5)
    kind = GGML_TYPES[name]
    data = rng.integers(0, 256, (rows * blocks, kind.type_size), dtype=np.uint8)
    scales = rng.normal(0, 0.1, (rows * blocks, 2)).astype(np.float16).view(np.uint8)
    if name == "MXFP4":
        data[:, 0] = rng.integers(0, 255, len(data))
    elif name == "IQ1_M":  # the four parts of its scale are the high nibbles of its last bytes but
        data[:, 49:56:2] = data[:, 49:56:2] & 15 | np.array([[0, 0, 64, 32]], dtype=np.uint8)
    elif name in ("Q6_K", "Q3_K", "TQ1_0", "TQ2_0"):
        data[:, -2:] = scales[:, :2]
    elif name == "Q2_K":
        data[:, -4:] = scales
    elif name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K"):
        data[:, :4] = scales
    else:
        data[:, :2] = scales[:, :2]
    return data.reshape(rows, -1)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_decoding_agrees_with_gguf_bit_for_bit(name: str) -> None:
    data = random_blocks(name, 6, 5)
    expected = gguf.quants.dequantize(data, GGMLQuantizationType[name])
    found = decode(torch.from_numpy(data), name).numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_float_types_agree_with_gguf(name: str) -> None:
    weight = torch.randn(5, 96) * torch.logspace(-8, 3, 96)
    data = encode(weight, name)
    expected = gguf.quants.quantize(weight.numpy(), GGMLQuantizationType[name])
    np.testing.assert_array_equal(data.numpy(), expected.view(np.uint8).reshape(5, -1))
    np.testing.assert_array_equal(decode(data, name).numpy(), gguf.quants.dequantize(expected, GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", BY_GGUF)
def test_reference_bytes_of_gguf(name: str, real_weights: list[Tensor]) -> None:
    for weight in [*real_weights, synthetic()]:
        expected = gguf.quants.quantize(weight.numpy(), GGMLQuantizationType[name])
        np.testing.assert_array_equal(encode(weight, name, mode="reference").numpy(), expected)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", OURS)
def test_reference_bytes_of_ggml(name: str, weighted: bool, real_weights: list[Tensor]) -> None:
    same = total = 0
    for weight in [*real_weights, synthetic()]:
        importance = importance_for(weight.shape[1]) if weighted else None
        ours, theirs = encode(weight, name, importance, mode="reference"), from_ggml(weight, name, importance)
        equal = (ours == theirs).view(-1, GGML_TYPES[name].type_size).all(1)
        same, total = same + int(equal.sum()), total + len(equal)
        # where another order of summation led elsewhere, it led to something as good to float32's rounding
        errors, their_errors = (block_errors(data, weight, name, importance)[~equal] for data in (ours, theirs))
        assert bool((errors <= their_errors * (1 + 1e-3)).all())
    assert same >= 0.999 * total


@pytest.mark.parametrize("name", IQ_PARAMETERS)
def test_iq_bytes_are_ggmls(name: str, real_weights: list[Tensor]) -> None:
    """However the rows are shared out, and whatever the scale of the importance."""
    weight = real_weights[0][:3]
    importance = importance_for(weight.shape[1])
    theirs = from_ggml(weight, name, importance)
    assert torch.equal(encode(weight, name, importance), theirs)
    assert torch.equal(encode(weight, name, importance * 2.0**40), theirs)
    assert torch.equal(
        encode(weight[1:2].bfloat16(), name, importance), from_ggml(weight[1:2].bfloat16().float(), name, importance)
    )
    if name not in NEEDS_IMPORTANCE:
        assert torch.equal(encode(weight, name), from_ggml(weight, name, None))


@pytest.mark.parametrize("name", IQ_PARAMETERS)
def test_iq_types_give_finite_numbers(name: str) -> None:
    for weight in (torch.randn(1, 256) * 1e-40, (torch.rand(1, 256) * 2 - 1) * 65504, torch.zeros(1, 256)):
        for importance in (torch.zeros(256), torch.rand(256) * 1e-30, torch.rand(256) * 1e30):
            assert bool(decode(encode(weight, name, importance), name).isfinite().all())


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", OURS)
def test_best_is_never_worse_and_better_on_real_weights(name: str, weighted: bool, real_weights: list[Tensor]) -> None:
    for weight in [*real_weights, synthetic()]:
        importance = importance_for(weight.shape[1]) if weighted else None
        best, reference = (
            block_errors(encode(weight, name, importance, mode=m), weight, name, importance) for m in ("best", "reference")
        )
        # both errors are compared in float32 sums of 256 terms
        assert bool((best <= reference * (1 + 256 * 2**-23)).all())
        if weight is real_weights[0]:
            assert best.sum() < 0.96 * reference.sum()


@pytest.mark.parametrize("name", OURS)
def test_best_is_the_default(name: str) -> None:
    weight = synthetic()[:8]
    assert torch.equal(encode(weight, name), encode(weight, name, mode="best"))


@pytest.mark.parametrize("mode", ["reference", "best"])
@pytest.mark.parametrize("name", OURS)
def test_rows_are_encoded_independently(name: str, mode: str) -> None:
    """Nor does it matter how many threads share the work, or what the float type was."""
    weight, importance = (torch.randn(70, 256) * 0.02).bfloat16(), importance_for(256)
    whole = encode(weight, name, importance, mode=mode)
    assert torch.equal(whole[3:5], encode(weight[3:5], name, importance, mode=mode))
    assert torch.equal(whole, encode(weight.float(), name, importance, mode=mode))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(whole, encode(weight, name, importance, mode=mode))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("mode", ["reference", "best"])
@pytest.mark.parametrize("name", OURS)
def test_extreme_weights_give_finite_numbers(name: str, mode: str) -> None:
    extremes = [torch.randn(2, 256) * 1e-40, (torch.rand(2, 256) * 2 - 1) * 65504, torch.full((2, 256), 65504.0)]
    importances = [None, torch.zeros(256), torch.rand(256) * 1e-12, torch.rand(256) * 1e12]
    for weight in extremes:
        for importance in importances:
            decoded = decode(encode(weight, name, importance, mode=mode), name)
            assert bool(decoded.isfinite().all())
            if mode == "best":  # ggml stores zeros for a block without importance
                assert float((decoded - weight).abs().max()) <= max(1e-6, 0.5 * float(weight.abs().max()))


def test_a_weight_without_importance_is_not_forgotten() -> None:
    weight, importance = torch.randn(4, 256) * 0.02, torch.ones(256)
    importance[:128] = 0
    decoded = decode(encode(weight, "Q4_K", importance), "Q4_K")
    assert float((decoded - weight)[:, :128].square().mean() / weight[:, :128].square().mean()) < 0.02


@given(
    weight=npst.arrays(np.float32, (2, 256), elements=st.floats(-8, 8, width=32, allow_subnormal=False)),
    name=st.sampled_from(OURS),
    mode=st.sampled_from(["reference", "best"]),
)
@settings(max_examples=80, deadline=None)
def test_round_trip_error_is_bounded_by_the_range(weight: np.ndarray, name: str, mode: str) -> None:
    """No block is worse than if its weights were rounded to 2^bits even steps over twice its range."""
    x = torch.from_numpy(weight)
    kind = GGML_TYPES[name]
    bits = int(re.findall(r"\d", name)[0]) if name != "MXFP4" else 4
    errors = block_errors(encode(x, name, mode=mode), x, name, None)
    spread = 2 * x.view(-1, kind.block_size).abs().amax(1).double()
    step = 2 * spread / 2**bits
    assert bool((errors <= kind.block_size * (step**2) + 1e-9).all())


@given(codes=npst.arrays(np.int8, (3, 32), elements=st.integers(-127, 127)), scale=st.floats(2**-10, 2, width=16))
def test_what_q8_0_holds_is_held_exactly(codes: np.ndarray, scale: float) -> None:
    codes[:, 0] = 127
    x = torch.from_numpy(codes).float() * scale
    assert torch.equal(decode(encode(x, "Q8_0", mode="reference"), "Q8_0"), x)
    assert torch.equal(decode(encode(x, "Q8_0"), "Q8_0"), x)


def test_table_agrees_with_gguf() -> None:
    for name, kind in GGML_TYPES.items():
        assert (kind.block_size, kind.type_size) == gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        assert kind.name == name and kind.value == GGMLQuantizationType[name].value
    assert GGML_TYPES["Q4_K"].bits_per_weight == 4.5
    assert row_bytes("Q6_K", 512) == 420


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [
        ("Q4_K", 576, "Q5_0"),
        ("Q5_K", 576, "Q5_1"),
        ("Q6_K", 576, "Q8_0"),
        ("Q2_K", 576, "Q4_0"),
        ("Q3_K", 576, "Q4_0"),
        ("IQ4_XS", 576, "IQ4_NL"),
        ("IQ3_S", 576, "IQ4_NL"),
        ("IQ1_S", 576, "IQ4_NL"),
        ("TQ2_0", 576, "Q4_0"),
        ("MXFP4", 100, "F16"),
        ("Q4_K", 768, "Q4_K"),
        ("Q6_K", 100, "F16"),
        ("Q8_0", 100, "F16"),
        ("F32", 7, "F32"),
    ],
)
def test_fallback_is_that_of_llama_cpp(name: str, n: int, expected: str) -> None:
    assert fallback(name, n) == expected


@pytest.mark.parametrize(
    ("weight", "name", "importance", "error", "words"),
    [
        (torch.zeros(2, 100), "Q4_K", None, BadModel, "100 .*256.*F16"),
        (torch.zeros(2, 576), "Q4_K", None, BadModel, "Q5_0"),
        (torch.tensor([[float("nan")] * 32]), "Q8_0", None, BadModel, "32 of 32 .*NaN"),
        (torch.tensor([[float("-inf")] + [0.0] * 31]), "Q4_0", None, BadModel, "1 of 32"),
        (torch.full((1, 32), 1e6), "Q8_0", None, BadModel, "1e\\+06.*BF16"),
        (torch.full((1, 32), 1e6), "F16", None, BadModel, "1e\\+06"),
        (torch.zeros(1, 256), "IQ2_XXS", None, BadModel, "importance matrix"),
        (torch.zeros(1, 100), "IQ3_S", None, BadModel, "100 .*256"),
        (torch.zeros(1, 256), "Q9_K", None, UsageError, "Q9_K.*Q4_K"),
        (torch.zeros(256), "Q4_K", None, BadModel, "matrix"),
        (torch.zeros(1, 256, dtype=torch.int8), "Q4_K", None, BadModel, "int8"),
        (torch.zeros(1, 256), "Q4_K", torch.ones(255), BadModel, "255.*256"),
        (torch.zeros(1, 256), "Q4_K", -torch.ones(256), BadModel, "negative"),
        (torch.zeros(1, 256), "Q4_K", torch.full((256,), float("nan")), BadModel, "finite"),
    ],
)
def test_bad_input_is_refused(weight: Tensor, name: str, importance: Tensor | None, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        encode(weight, name, importance)


@pytest.mark.parametrize("size", [2.0**-128, 2.0**-100, 2.0**122])
@pytest.mark.parametrize("name", [n for n, kind in GGML_TYPES.items() if kind.block_size > 1])
def test_importance_of_any_size_gives_the_same_bytes(name: str, size: float) -> None:
    """All of one size: as if they were ones. Sums of a row would overflow or vanish; in ggml's IQ types that ended the process."""
    weight = torch.randn(2, 512, generator=torch.Generator().manual_seed(8))
    assert torch.equal(encode(weight, name, torch.full((512,), size)), encode(weight, name, torch.ones(512)))


@pytest.mark.parametrize("name", IQ_TYPES)
def test_quiet_blocks_beside_loud_ones_give_finite_numbers(name: str) -> None:
    weight, importance = torch.randn(2, 512, generator=torch.Generator().manual_seed(8)), torch.ones(512)
    for quiet in (0.0, 1e-42, 1e-30):
        importance[256:] = quiet
        assert bool(decode(encode(weight, name, importance), name).isfinite().all())


def test_bytes_that_are_no_blocks_are_refused() -> None:
    with pytest.raises(BadModel, match="145"):
        decode(torch.zeros(1, 145, dtype=torch.uint8), "Q4_K")
    with pytest.raises(BadModel, match="float32"):
        decode(torch.zeros(1, 144), "Q4_K")


def test_bfloat16_keeps_what_float16_cannot() -> None:
    assert float(decode(encode(torch.full((1, 32), 1e30), "BF16"), "BF16")[0, 0]) == pytest.approx(1e30, rel=2**-8)


def test_an_empty_matrix_has_no_bytes() -> None:
    assert encode(torch.zeros(0, 256), "Q4_K").shape == (0, 144)
    assert decode(torch.zeros(0, 144, dtype=torch.uint8), "Q4_K").shape == (0, 256)
