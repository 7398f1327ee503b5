"""The machine code gives the bytes of the definition in plain torch, and where it cannot be had nothing stops."""

import platform
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hubquant_kernels import native
from hubquant_kernels.ggml_quantize import ggml_quantize
from hubquant_kernels.ggml_range import LARGEST, WIDE, OutOfRange
from hubquant_kernels.ggml_types import GGML_TYPES
from torch import Tensor

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")


def weights(rows: int = 37, columns: int = 512) -> Tensor:
    """Gaussian, with heavy tails, with zeros, tiny and whole numbers [rows, columns]; rows in no multiple of a register's lanes."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(rows, columns, generator=generator) * 0.02
    x[1::5] *= torch.exp(3 * torch.randn(x[1::5].shape, generator=generator))
    x[2::7, : columns // 3] = 0
    x[3::7] = 0
    x[4::7] *= 1e-20
    x[5::7] = (x[5::7] * 100).round()
    return x.clamp(-6e4, 6e4)


def importance(*shape: int) -> Tensor:
    return torch.exp(2 * torch.randn(shape, generator=torch.Generator().manual_seed(2)))


@needs_compiler
@pytest.mark.parametrize("given", [(), (512,), (37, 512)], ids=["plain", "by column", "by weight"])
@pytest.mark.parametrize("mode", ["reference", "best"])
@pytest.mark.parametrize("name", native.KINDS)
def test_the_bytes_are_the_definitions(name: str, mode: str, given: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    counts = importance(*given) if given else None
    assert native.encoder(name) is not None
    found = ggml_quantize(weights(), counts, name, mode)
    monkeypatch.setenv("HUBQUANT_NATIVE", "0")
    assert native.encoder(name) is None
    assert torch.equal(found, ggml_quantize(weights(), counts, name, mode))


@needs_compiler
@pytest.mark.parametrize(("name", "mode"), [("Q4_K", "best"), ("Q4_0", "reference"), ("Q8_0", "reference")])
def test_nothing_is_written_beyond_the_blocks(name: str, mode: str) -> None:
    kind = GGML_TYPES[name]
    x = torch.randn(19, kind.block_size)
    encode = native.encoder(name)
    assert encode is not None
    out = torch.full((19 + 2, kind.type_size), 77, dtype=torch.uint8)
    encode(x, 0, 1, None, None, mode == "best", out[1:-1])
    assert out[0].unique().tolist() == out[-1].unique().tolist() == [77]
    assert torch.equal(out[1:-1], ggml_quantize(x, None, name, mode))


@pytest.mark.parametrize("native_code", ["0", "1"])
@pytest.mark.parametrize("mode", ["reference", "best"])
@pytest.mark.parametrize("name", GGML_TYPES)
def test_values_that_cannot_be_stored_are_seen_wherever_they_are(
    name: str, mode: str, native_code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first and the last block and in one of every lane's; the largest that is stored is not one of them."""
    monkeypatch.setenv("HUBQUANT_NATIVE", native_code)
    clean = torch.randn(37, 256, generator=torch.Generator().manual_seed(1))
    clean[3, 5], clean[36, 255] = LARGEST, -LARGEST
    ggml_quantize(clean, None, name, mode)
    for row, column in ((0, 0), (36, 255), (5, 17), (14, 130), (23, 63)):
        for value in (float("nan"), float("inf"), -float("inf"), *(() if name in WIDE else (1e5, -1e5))):
            bad = clean.clone()
            bad[row, column] = value
            why = "magnitude 100000 does not fit" if abs(value) == 1e5 else "1 of 9472 weights are NaN or infinite"
            with pytest.raises(OutOfRange, match=why):
                ggml_quantize(bad, None, name, mode)


@needs_compiler
@pytest.mark.parametrize("mode", ["reference", "best"])
@pytest.mark.parametrize("name", native.KINDS)
def test_the_largest_magnitude_is_told(name: str, mode: str) -> None:
    kind = GGML_TYPES[name]
    encode, x = native.encoder(name), torch.randn(21, kind.block_size)
    assert encode is not None
    out = torch.empty(21, kind.type_size, dtype=torch.uint8)
    assert encode(x, 0, 1, None, None, mode == "best", out) == float(x.abs().max())


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and nothing loaded."""
    monkeypatch.setenv("HUBQUANT_CACHE", str(tmp_path))
    for cached in (native._encoder, native._say):
        cached.cache_clear()
    yield tmp_path / "native"
    for cached in (native._encoder, native._say):
        cached.cache_clear()


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one width")
@pytest.mark.parametrize("width", ["-mno-avx", "-mno-avx2"])
@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])  # which go by weights side by side, not blocks
def test_registers_of_every_width_give_the_same_bytes(name: str, width: str, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ggml_quantize(weights(), None, name, "reference")
    native._encoder.cache_clear()
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, width))
    assert torch.equal(expected, ggml_quantize(weights(), None, name, "reference"))
    assert len(list(fresh.iterdir())) == 2, "compiled twice"


ENCODE = """
import torch
from hubquant_kernels.ggml_quantize import ggml_quantize
print(ggml_quantize(torch.linspace(-1, 1, 512).view(2, 256), None, "Q6_K", "reference").long().sum().item())
"""


@needs_compiler
def test_two_processes_compile_at_once(fresh: Path) -> None:
    runs = [subprocess.Popen([sys.executable, "-c", ENCODE], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = {run.communicate()[0] for run in runs}
    expected = ggml_quantize(torch.linspace(-1, 1, 512).view(2, 256), None, "Q6_K", "reference").long().sum().item()
    assert found == {f"{expected}\n"}
    assert [p.suffix for p in fresh.iterdir()] == [".so"], "one library, and nothing left over"


@needs_compiler
def test_it_is_compiled_once_and_for_these_flags(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cxx = native.compiler()
    assert cxx is not None
    first = native.compiled(cxx, "Q6_K")
    made = first.stat().st_mtime_ns
    assert native.compiled(cxx, "Q6_K") == first and first.stat().st_mtime_ns == made
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-O0"))
    assert native.compiled(cxx, "Q6_K") != first


def test_a_compiler_that_fails_stops_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    x = torch.randn(2, 256)
    with pytest.warns(RuntimeWarning, match="false"):
        found = ggml_quantize(x, None, "Q4_K", "best")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(found, ggml_quantize(x, None, "Q4_K", "best")), "and it is not tried again"
    assert list(fresh.iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_written_stops_nothing(fresh: Path) -> None:
    fresh.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="HUBQUANT_CACHE"):
        assert native.encoder("Q4_K") is None


@needs_compiler
def test_a_library_of_another_system_is_compiled_once_more(fresh: Path) -> None:
    cxx = native.compiler()
    assert cxx is not None
    native.compiled(cxx, "Q8_0").write_bytes(b"of another system")
    assert native.encoder("Q8_0") is not None


@needs_compiler
def test_a_library_that_cannot_be_loaded_stops_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the cache is on a disk whose files cannot be run."""

    def refused(path: str) -> None:
        raise OSError("failed to map segment from shared object")

    monkeypatch.setattr(native.ctypes, "CDLL", refused)
    with pytest.warns(RuntimeWarning, match=r"failed to map segment.*HUBQUANT_CACHE"):
        assert native.encoder("Q8_0") is None


@needs_compiler
def test_without_a_home_the_definition_runs(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HUBQUANT_CACHE")
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.warns(RuntimeWarning, match="home directory"):
        assert native.encoder("Q8_0") is None


@needs_compiler
def test_a_compiler_may_be_named_with_options(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = native.compiler()
    assert found is not None
    monkeypatch.setenv("CXX", f"{found[0]} -m64")
    assert native.compiler() == [found[0], "-m64"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(RuntimeWarning, match="no compiler no-such-compiler"):
        assert native.encoder("Q8_0") is None


def test_without_a_compiler_the_definition_runs(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.encoder("Q4_K") is None
    assert ggml_quantize(torch.randn(1, 256), None, "Q4_K", "reference").shape == (1, 144)
