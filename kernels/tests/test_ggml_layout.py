"""Every packer is undone by its reader, and puts bits where the layouts of ggml say (gguf decodes our bytes in tests/quantize)."""

import pytest
import torch
from hubquant_kernels import ggml_layout as layout
from torch import Tensor


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(high), dtype=torch.uint8)


def halves(n: int) -> Tensor:
    return torch.randn(n, 1, generator=torch.Generator().manual_seed(n)).half()


@pytest.mark.parametrize("run", [16, 32, 64])
def test_nibbles(run: int) -> None:
    codes = integers(16, 5, 256)
    assert torch.equal(layout.unpack_nibbles(layout.pack_nibbles(codes, run), run), codes)
    assert layout.pack_nibbles(codes, run)[0, 0] == codes[0, 0] + 16 * codes[0, run]


@pytest.mark.parametrize("width", [1, 2])
def test_planes(width: int) -> None:
    bits = integers(1 << width, 7, 8 // width, 32)
    assert torch.equal(layout.unpack_planes(layout.pack_planes(bits, width), width), bits)


def test_bit32_is_little_endian() -> None:
    bits = torch.zeros(1, 32, dtype=torch.uint8)
    bits[0, 9] = 1
    assert layout.pack_bit32(bits).tolist() == [[0, 2, 0, 0]]
    bits = integers(2, 6, 32)
    assert torch.equal(layout.unpack_bit32(layout.pack_bit32(bits)), bits)


def test_scale_min() -> None:
    sc, m = integers(64, 9, 8), integers(63, 9, 8)
    packed = layout.pack_scale_min(sc, m)
    assert packed.shape == (9, 12)
    found_sc, found_m = layout.unpack_scale_min(packed)
    assert torch.equal(found_sc, sc) and torch.equal(found_m, m)


@pytest.mark.parametrize(
    ("kind", "levels", "top", "g", "size"), [("q2_k", 4, 16, 16, 84), ("q4_k", 16, 64, 8, 144), ("q5_k", 32, 64, 8, 176)]
)
def test_affine_k(kind: str, levels: int, top: int, g: int, size: int) -> None:
    fields = (halves(4), -halves(4), integers(top, 4, g), integers(top - 1, 4, g), integers(levels, 4, 256))
    data = getattr(layout, f"pack_{kind}")(*fields)
    assert data.shape == (4, size) and data.dtype == torch.uint8
    assert all(torch.equal(a, b) for a, b in zip(getattr(layout, f"unpack_{kind}")(data), fields, strict=True))


@pytest.mark.parametrize(
    ("kind", "levels", "top", "g", "size"), [("q3_k", 8, 64, 16, 110), ("q6_k", 64, 256, 16, 210), ("iq4_xs", 16, 64, 8, 136)]
)
def test_symmetric_k(kind: str, levels: int, top: int, g: int, size: int) -> None:
    sc = (integers(255, 4, g).long() % top - top // 2).to(torch.int8)
    fields = (halves(4), sc, integers(levels, 4, 256))
    data = getattr(layout, f"pack_{kind}")(*fields)
    assert data.shape == (4, size) and data.dtype == torch.uint8
    assert all(torch.equal(a, b) for a, b in zip(getattr(layout, f"unpack_{kind}")(data), fields, strict=True))


@pytest.mark.parametrize(("kind", "size"), [("tq1_0", 54), ("tq2_0", 66)])
def test_ternary(kind: str, size: int) -> None:
    fields = (halves(4), integers(3, 4, 256))
    data = getattr(layout, f"pack_{kind}")(*fields)
    assert data.shape == (4, size) and data.dtype == torch.uint8
    assert all(torch.equal(a, b) for a, b in zip(getattr(layout, f"unpack_{kind}")(data), fields, strict=True))
