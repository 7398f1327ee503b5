"""What is compiled gives the bits of what is not, and is compiled only where that pays."""

import warnings
from pathlib import Path

import pytest
import torch
from hubquant_kernels import compiled
from hubquant_kernels.compiled import Compiled
from hubquant_kernels.compiled_search import BY_SQUARE, nearest_values
from hubquant_kernels.ggml_codebook import nearest_values as by_table
from hubquant_kernels.ggml_columns import CACHE_WEIGHTS
from hubquant_kernels.ggml_quantize import ggml_quantize
from hubquant_kernels.ggml_types import GGML_TYPES
from torch import Tensor
from torch._inductor import config

pytestmark = pytest.mark.skipif(not compiled._has_compiler(), reason="needs a C++ compiler")

SEARCHED = [name for name, kind in GGML_TYPES.items() if kind.block_size > 1 and name not in ("TQ1_0", "TQ2_0", "MXFP4")]


def weights() -> Tensor:
    """As many as one call of a compiled function takes, Gaussian and with heavy tails."""
    generator = torch.Generator().manual_seed(4)
    gaussian = torch.randn(CACHE_WEIGHTS // 512, 512, generator=generator) * 0.02
    gaussian[1::3] *= torch.exp(torch.randn(gaussian[1::3].shape, generator=generator))
    return gaussian


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("mode", ["reference", "best"])
@pytest.mark.parametrize("name", SEARCHED)
def test_every_encoder_gives_the_same_bytes(name: str, mode: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    importance = torch.exp(2 * torch.randn(512, generator=torch.Generator().manual_seed(2))) if weighted else None
    monkeypatch.setenv("HUBQUANT_COMPILE_AFTER", "inf")
    plain = ggml_quantize(weights(), importance, name, mode)
    monkeypatch.setenv("HUBQUANT_COMPILE_AFTER", "0")
    assert torch.equal(ggml_quantize(weights(), importance, name, mode), plain)


def test_a_search_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    importance = torch.exp(2 * torch.randn(512, generator=torch.Generator().manual_seed(2)))
    monkeypatch.setattr(BY_SQUARE, "_kernels", {})
    monkeypatch.setenv("HUBQUANT_COMPILE_AFTER", "inf")
    plain = ggml_quantize(weights(), importance, "Q4_K", "reference")
    assert BY_SQUARE._kernels == {}
    monkeypatch.setenv("HUBQUANT_COMPILE_AFTER", "0")
    assert torch.equal(ggml_quantize(weights(), importance, "Q4_K", "reference"), plain)
    assert len(BY_SQUARE._kernels) == 1


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    function = Compiled(lambda x: x + 1)
    monkeypatch.setattr(compiled, "compile_for", lambda f, arguments: f)
    monkeypatch.setenv("HUBQUANT_COMPILE_AFTER", "0.0001")
    x = torch.zeros(4)
    assert function.kernel(x) is None
    with function.instead(x):
        for _ in range(3000):
            x.sin()
    assert function.kernel(x) is not None
    assert function.kernel(torch.zeros(5)) is None  # another shape has its own count
    monkeypatch.setattr(compiled, "_has_compiler", lambda: False)
    monkeypatch.setenv("HUBQUANT_COMPILE_AFTER", "0")
    assert function.kernel(torch.zeros(5)) is None


def test_a_compiler_that_fails_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HUBQUANT_COMPILE_AFTER", "0")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(config.cpp, "cxx", ("/bin/false",))
    function = Compiled(lambda x: x.sin() + 2.5)
    with pytest.warns(RuntimeWarning, match="GGUF searches run uncompiled"):
        assert function.kernel(torch.zeros(6)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function.kernel(torch.zeros(6)) is None, "and it is not tried again"


def test_the_machine_code_is_for_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compile_for", lambda f, arguments: f)
    monkeypatch.setenv("HUBQUANT_COMPILE_AFTER", "0")
    function = Compiled(lambda x: x + 1)
    assert function.kernel(torch.zeros(4)) is not None
    assert function.kernel(torch.zeros(4, device="meta")) is None


def test_the_codebook_by_comparisons() -> None:
    x = torch.cat((torch.linspace(-200, 200, 40001), torch.tensor([-115.5, -16.0, 7.0, 101.0, torch.inf, -torch.inf])))
    assert torch.equal(nearest_values(x), by_table(x))
