"""Thousands of damaged files: each is sound or refused with BadModel, at once, in little memory."""

import random
import resource
import struct
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubquant.errors import BadModel
from hubquant.formats.gguf.header import GgufHeader
from hubquant.formats.gguf.imatrix import Imatrix
from hubquant.formats.gguf.reader import GgufSource

CORPUS = Path(__file__).with_name("corpus.zip")
# what a damaged field is likely to hold, and what arithmetic on it may trip over
EDGES = (0, 1, 2, 31, 255, 256, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TYPES = gguf.GGMLQuantizationType
MUTANTS = 3000


def seeds() -> dict[str, bytes]:
    """Sound files, by name: a model of one layer with most block types, and an importance matrix."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.gguf"
        return {"model": _model(path).read_bytes(), "imatrix": _imatrix(path).read_bytes()}


def read_all(path: Path) -> bool:
    """Everything hubquant does with a stranger's file. Whether it is sound; raises what is not BadModel."""
    try:
        header = GgufHeader.read(path)
        for name in header.tensors:
            header.tensor(name)
    except BadModel:
        return False
    for read in (_read_weights, Imatrix.read):
        try:
            read(path)
        except BadModel:
            continue
    return True


def _read_weights(path: Path) -> None:
    source = GgufSource(path)
    for name in source.names():
        source.tensor(name)


def damaged(data: bytes, dice: random.Random) -> bytes:
    """One to eight wounds: a byte, a number, a cut, a doubled or a missing stretch. Most fall before the tensors' data."""
    result = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        at = dice.randrange(max(1, min(len(result), 2500) - 8))
        wound = dice.randrange(6)
        if wound == 0:
            result[at] = dice.randrange(256)
        elif wound == 1:
            result[at] ^= 1 << dice.randrange(8)
        elif wound == 2:
            form = dice.choice(("<I", "<Q"))
            struct.pack_into(form, result, at, dice.choice(EDGES) % (1 << 8 * struct.calcsize(form)))
        elif wound == 3:
            del result[dice.randrange(len(result) // 2, len(result)) :]
        elif wound == 4:
            result[at:at] = result[at : at + dice.randrange(1, 64)]
        else:
            del result[at : at + dice.randrange(1, 64)]
        if len(result) < 16:
            break
    return bytes(result)


def corpus() -> Iterator[tuple[str, bytes]]:
    """The files that coverage-guided fuzzing kept because each reaches code that no other does."""
    with zipfile.ZipFile(CORPUS) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)


def _model(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_uint32("llama.attention.head_count_kv", 2)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_string("general.name", "ßeed")
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "語"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0])
    writer.add_array("tokenizer.ggml.token_type", [3, 1, 1])
    matrices = {"attn_q": "Q4_K", "attn_k": "Q6_K", "attn_v": "Q5_0", "attn_output": "IQ4_XS", "ffn_down": "Q8_0"}
    for name, kind in {"token_embd": "F16", "output_norm": "F32", "output": "BF16"}.items():
        _add(writer, f"{name}.weight", kind, rows=0 if name == "output_norm" else 3)
    for name, kind in matrices.items():
        _add(writer, f"blk.0.{name}.weight", kind, rows=8)
    return _written(writer, path)


def _add(writer: gguf.GGUFWriter, name: str, kind: str, rows: int) -> None:
    block, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    row_bytes = 256 // block * size
    shape = (rows, row_bytes) if rows else (row_bytes,)
    writer.add_tensor(name, np.zeros(shape, dtype=np.uint8), raw_dtype=TYPES[kind])


def _imatrix(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_down.weight"):
        writer.add_tensor(f"{name}.in_sum2", np.ones(16, dtype=np.float32))
        writer.add_tensor(f"{name}.counts", np.full(1, 1024, dtype=np.float32))
    return _written(writer, path)


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sound_files() -> dict[str, bytes]:
    return seeds()


def test_the_seeds_are_sound(sound_files: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in sound_files.items():
        (tmp_path / name).write_bytes(data)
        assert read_all(tmp_path / name), name


def test_mutants(sound_files: dict[str, bytes], tmp_path: Path) -> None:
    """Memory: a file of 10 kB may not cost more than a megabyte, whatever it claims; time: a hundredth of a second each."""
    dice = random.Random(0)
    path = tmp_path / "mutant.gguf"
    sound = 0
    tracemalloc.start()
    started = time.process_time()
    for i in range(MUTANTS):
        path.write_bytes(damaged(sound_files[("model", "imatrix")[i % 2]], dice))
        sound += read_all(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - started < 0.01 * MUTANTS
    assert peak < 1 << 20
    assert 0 < sound < MUTANTS / 2  # the wounds are real, and not all of them deadly


@settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 2499), st.binary(max_size=9)), min_size=1, max_size=4))
def test_any_bytes_anywhere(sound_files: dict[str, bytes], tmp_path: Path, model: bool, wounds: list[tuple[int, bytes]]) -> None:
    data = bytearray(sound_files["model" if model else "imatrix"])
    for at, put in wounds:
        data[at : at + len(put)] = put
    path = tmp_path / "wounded.gguf"
    path.write_bytes(data)
    read_all(path)


def test_a_name_of_a_million_letters_does_not_fill_the_log(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    name = struct.pack("<Q", 1 << 20) + b"k" * (1 << 20)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + name + struct.pack("<I", 99))
    with pytest.raises(BadModel, match="unknown type 99") as caught:
        GgufHeader.read(path)
    assert len(str(caught.value)) < 200


def test_what_fuzzing_found(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = tmp_path / "found.gguf"
    n = 0
    for _, data in corpus():
        path.write_bytes(data)
        read_all(path)
        n += 1
    assert n >= 50
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kB
