"""Hundreds of damaged files: each is refused with BadModel, at once, in little memory."""

import random
import struct
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from hubquant.errors import BadModel
from hubquant.formats.gguf.header import GgufHeader

U32, U64, F32, STRING, ARRAY, BOOL = 4, 10, 6, 8, 9, 7
HUGE = (1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


@dataclass
class Blueprint:
    """The bytes of a small file, and where each kind of field is in them: (kind, position, width)."""

    data: bytearray = field(default_factory=bytearray)
    fields: list[tuple[str, int, int]] = field(default_factory=list)

    def number(self, kind: str, form: str, value: float) -> None:
        self.fields.append((kind, len(self.data), struct.calcsize(form)))
        self.data += struct.pack(form, value)

    def text(self, kind: str, value: str) -> None:
        self.number("length", "<Q", len(value.encode()))
        self.fields.append((kind, len(self.data), len(value.encode())))
        self.data += value.encode()

    def changed(self, position: int, form: str, value: int) -> bytes:
        data = bytearray(self.data)
        struct.pack_into(form, data, position, value)
        return bytes(data)


def build() -> Blueprint:
    b = Blueprint()
    b.number("magic", "<I", 0x46554747)
    b.number("version", "<I", 3)
    b.number("count", "<Q", 3)
    b.number("count", "<Q", 6)
    for key, kind in (("general.architecture", STRING), ("general.alignment", U32), ("a.number", U64), ("a.flag", BOOL)):
        b.text("key", key)
        b.number("type", "<I", kind)
        if kind == STRING:
            b.text("text", "llama")
        elif kind == U32:
            b.number("alignment", "<I", 64)
        elif kind == U64:
            b.number("value", "<Q", 12345)
        else:
            b.number("value", "<B", 1)
    b.text("key", "a.texts")
    b.number("type", "<I", ARRAY)
    b.number("type", "<I", STRING)
    b.number("count", "<Q", 2)
    b.text("text", "one")
    b.text("text", "zwölf")
    b.text("key", "a.floats")
    b.number("type", "<I", ARRAY)
    b.number("type", "<I", F32)
    b.number("count", "<Q", 3)
    for value in (0.5, 1.5, 2.5):
        b.number("value", "<f", value)
    for name, shape, kind, offset in (("a", (8, 4), 0, 0), ("b", (256, 3), 12, 128), ("c", (32,), 8, 576)):
        b.text("name", name)
        b.number("dimensions", "<I", len(shape))
        for size in shape:
            b.number("size", "<Q", size)
        b.number("ggml type", "<I", kind)
        b.number("offset", "<Q", offset)
    b.data += bytes(-len(b.data) % 64)
    b.data += np.arange(32, dtype=np.float32).tobytes() + bytes(432) + bytes(16) + bytes(34)
    return b


GOOD = build()


def hostile() -> Iterator[tuple[str, bytes]]:
    data = bytes(GOOD.data)
    for end in range(0, len(data), 7):
        yield f"truncated to {end}", data[:end]
    for kind, at, _width in GOOD.fields:
        if kind in ("length", "count", "size", "offset"):
            for value in HUGE:
                yield f"{kind} at {at} = {value}", GOOD.changed(at, "<Q", value)
        elif kind in ("type", "ggml type"):
            for value in (36, 37, 99, 1 << 20, (1 << 32) - 1):
                yield f"{kind} at {at} = {value}", GOOD.changed(at, "<I", value)
        elif kind == "dimensions":
            for value in (0, 9, 1 << 16, (1 << 32) - 1):
                yield f"{kind} at {at} = {value}", GOOD.changed(at, "<I", value)
        elif kind == "alignment":
            for value in (0, 3, 48, 1 << 31, (1 << 32) - 1):
                yield f"{kind} at {at} = {value}", GOOD.changed(at, "<I", value)
        elif kind in ("magic", "version"):
            for value in (0, 1, 4, 0x03000000, 0x47475546):
                yield f"{kind} at {at} = {value}", GOOD.changed(at, "<I", value)
        elif kind in ("key", "text", "name"):
            yield f"{kind} at {at} not UTF-8", GOOD.changed(at, "<B", 0xFF)
    sizes = [at for kind, at, _ in GOOD.fields if kind == "size"]
    offsets = [at for kind, at, _ in GOOD.fields if kind == "offset"]
    names = [at for kind, at, _ in GOOD.fields if kind == "name"]
    yield "rows of 255 in blocks of 256", GOOD.changed(sizes[2], "<Q", 255)
    yield "no rows", GOOD.changed(sizes[1], "<Q", 0)
    yield "two tensors of one name", GOOD.changed(names[1], "<B", ord("a"))
    yield "overlapping tensors", GOOD.changed(offsets[1], "<Q", 64)
    yield "the same place twice", GOOD.changed(offsets[1], "<Q", 0)
    yield "misaligned", GOOD.changed(offsets[1], "<Q", 130)
    yield "an array of arrays", GOOD.changed([at for kind, at, _ in GOOD.fields if kind == "type"][5], "<I", ARRAY)


def test_the_sound_file_reads(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD.data)
    header = GgufHeader.read(path)
    assert header.values == {
        "general.architecture": "llama",
        "general.alignment": 64,
        "a.number": 12345,
        "a.flag": True,
        "a.texts": ["one", "zwölf"],
        "a.floats": [0.5, 1.5, 2.5],
    }
    assert {name: t.shape for name, t in header.tensors.items()} == {"a": (4, 8), "b": (3, 256), "c": (32,)}
    np.testing.assert_array_equal(header.tensor("a").numpy(), np.arange(32, dtype=np.float32).reshape(4, 8))
    assert header.tensor("c").shape == (32,)
    with pytest.raises(BadModel, match=r"m\.gguf: no tensor 'd'"):
        header.tensor("d")
    with pytest.raises(BadModel, match=r"a\.flag is True, expected a positive whole number"):
        header.positive("a.flag")


def test_hostile_files_are_refused_at_once_and_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    corpus = list(hostile())
    assert len(corpus) > 300
    tracemalloc.start()
    started = time.monotonic()
    for what, data in corpus:
        path.write_bytes(data)
        with pytest.raises(BadModel, match=r"^m\.gguf (is not a sound|cannot be read as a) GGUF file: "):
            GgufHeader.read(path)
            pytest.fail(what)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - started < 20
    assert peak < 8 << 20


def test_any_damage_is_bad_model_or_harmless(tmp_path: Path) -> None:
    """Random bytes flipped: some leave a sound file, none raises anything else, and what is sound can be decoded."""
    dice = random.Random(0)
    path = tmp_path / "m.gguf"
    refused = 0
    for _ in range(400):
        data = bytearray(GOOD.data)
        for _ in range(dice.choice((1, 1, 2, 8))):
            data[dice.randrange(len(data) - 600)] = dice.randrange(256)
        path.write_bytes(data)
        try:
            header = GgufHeader.read(path)
            for name in header.tensors:
                header.tensor(name)
        except BadModel:
            refused += 1
    assert 100 < refused < 400


def test_a_key_twice(tmp_path: Path) -> None:
    at = next(at for kind, at, width in GOOD.fields if kind == "key" and GOOD.data[at : at + width] == b"a.number")
    data = bytearray(GOOD.data)
    flag = data.index(b"a.flag")
    data[at : at + 8] = b"a.flag\0\0"
    data[flag - 8 : flag] = struct.pack("<Q", 8)
    data[flag : flag + 6] = b"a.flag\0\0"
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(BadModel, match="occurs twice"):
        GgufHeader.read(tmp_path / "m.gguf")


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"m\.gguf cannot be read as a GGUF file: .*No such file"):
        GgufHeader.read(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").touch()
    with pytest.raises(BadModel, match=r"m\.gguf cannot be read as a GGUF file"):
        GgufHeader.read(tmp_path / "m.gguf")
