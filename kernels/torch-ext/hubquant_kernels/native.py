"""The encoders of ggml's block types as machine code: native/*.cpp, compiled for this processor when a type is first wanted.

The code gives the bytes of the encoders in plain torch, several times faster: they are its definition, and run where it cannot
be had. What is compiled is kept in HUBQUANT_CACHE (~/.cache/hubquant) under a hash of the source, the flags and the processor.
HUBQUANT_NATIVE=0 does without.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from . import kquant, kquant_symmetric, legacy, ternary
from .ggml_best_affine import AffineKind
from .ggml_best_symmetric import SymmetricKind

SOURCE = Path(__file__).parent / "native"
# operations are neither fused nor reordered: the bytes must be ggml's
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# how best mode searches
KINDS: dict[str, AffineKind | SymmetricKind] = {
    "Q8_0": legacy.Q8_0,
    "Q4_0": legacy.Q4_0,
    "Q4_1": AffineKind(15, signed=True),
    "Q5_0": legacy.Q5_0,
    "Q5_1": AffineKind(31, signed=True),
    "IQ4_NL": legacy.IQ4_NL,
    "Q2_K": kquant.Q2_K.kind,
    "Q3_K": kquant_symmetric.Q3_K,
    "Q4_K": kquant.Q4_K.kind,
    "Q5_K": kquant.Q5_K.kind,
    "Q6_K": kquant_symmetric.Q6_K,
    "IQ4_XS": kquant_symmetric.IQ4_XS,
    "TQ1_0": ternary.TERNARY,
    "TQ2_0": ternary.TERNARY,
}
_lock = threading.Lock()


class _Trials(ctypes.Structure):
    _fields_ = (
        ("ends", ctypes.POINTER(ctypes.c_float)),
        ("factors", ctypes.POINTER(ctypes.c_float)),
        ("n_ends", ctypes.c_int),
        ("n_factors", ctypes.c_int),
    )


class _Task(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("importance", ctypes.c_void_p),
        ("row_square", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("first", ctypes.c_int64),
        ("n_blocks", ctypes.c_int64),
        ("per_row", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("trials", _Trials),
        ("best", ctypes.c_int32),
        ("largest", ctypes.c_float),
    )


class Encoder:
    """The machine code of one type."""

    def __init__(self, library: ctypes.CDLL, kind: AffineKind | SymmetricKind) -> None:
        self._encode = library.hubquant_encode
        self._encode.argtypes, self._encode.restype = (ctypes.POINTER(_Task),), None
        ends, factors = kind.peaks if isinstance(kind, SymmetricKind) else kind.steps(), kind.factors()
        self._trials = _Trials(_array(ends), _array(factors), len(ends), len(factors))

    def __call__(
        self, x: Tensor, first: int, per_row: int, importance: Tensor | None, row_square: Tensor | None, best: bool, out: Tensor
    ) -> float:
        """Writes the bytes of blocks x, float32 [n, size], the first of which is number `first` of a matrix with `per_row` in
        each row, into out, uint8 [n, bytes]. importance, float32 [in] or [out, in], and row_square [out] are the matrix's.
        Returns the largest magnitude of x, NaN if it contains one."""
        x = x.contiguous()
        if importance is not None:
            importance = importance.contiguous()
        task = _Task(
            x.data_ptr(),
            None if importance is None else importance.data_ptr(),
            None if row_square is None else row_square.data_ptr(),
            out.data_ptr(),
            first,
            len(x),
            per_row,
            0 if importance is None or importance.ndim == 1 else importance.shape[1],
            self._trials,
            best,
        )
        self._encode(ctypes.byref(task))
        return float(task.largest)


def _array(numbers: Sequence[float]) -> "ctypes.Array[ctypes.c_float]":
    return (ctypes.c_float * len(numbers))(*numbers)


def encoder(type_name: str) -> Encoder | None:
    """The machine code of the type; None where there is none, none is wanted, or it cannot be compiled, which is said once."""
    if type_name not in KINDS or os.environ.get("HUBQUANT_NATIVE") == "0":
        return None
    with _lock:
        return _encoder(type_name)


def compiler() -> list[str] | None:
    """CXX, which may have options, or else the machine's own C++ compiler."""
    named = shlex.split(os.environ.get("CXX", ""))
    for program, *options in [named] if named else [["g++"], ["c++"]]:
        if found := shutil.which(program):
            return [found, *options]
    return None


@functools.cache
def _encoder(type_name: str) -> Encoder | None:
    library = _library("encode.cpp", type_name)
    return None if library is None else Encoder(library, KINDS[type_name])


def columns() -> ctypes.CDLL | None:
    """The machine code of native/columns.cpp, or None as for `encoder`."""
    if os.environ.get("HUBQUANT_NATIVE") == "0":
        return None
    with _lock:
        return _columns()


@functools.cache
def _columns() -> ctypes.CDLL | None:
    return _library("columns.cpp", "columns")


def _library(source: str, type_name: str) -> ctypes.CDLL | None:
    """The compiled source; None where there is no compiler, or it fails, or what it made cannot be loaded, which is said once."""
    cxx = compiler()
    if cxx is None:
        if named := os.environ.get("CXX"):
            _say(f"there is no compiler {named} (CXX)")
        return None
    try:
        return _loaded(cxx, type_name, source)
    except subprocess.CalledProcessError as error:
        _say(f"{cxx[0]} says: {error.stderr.strip() or error}")
    except OSError as error:
        _say(f"{error}; HUBQUANT_CACHE names another folder")
    return None


def _loaded(cxx: Sequence[str], type_name: str, source: str) -> ctypes.CDLL:
    """Compiled once more if it cannot be loaded: it may be of another system that shares the folder."""
    library = compiled(cxx, type_name, source)
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        library.unlink(missing_ok=True)
        return ctypes.CDLL(str(compiled(cxx, type_name, source)))


@functools.cache
def _say(why: str) -> None:
    sentence = f"weights are quantized several times slower than they could be: the machine code for it could not be made. {why}"
    warnings.warn(sentence, RuntimeWarning, stacklevel=5)


def compiled(cxx: Sequence[str], type_name: str, source: str = "encode.cpp") -> Path:
    """The library of a type, or of a source that knows no types, compiled if this machine has not done so before.

    Raises OSError where it cannot be written, CalledProcessError where the compiler fails.
    """
    sources = sorted(SOURCE.glob("*.[ch]*"))
    command = [*cxx, *FLAGS, f"-DTYPE={type_name}", str(SOURCE / source)]
    system = (_processor(), *platform.libc_ver())
    parts = (*(p.read_bytes() for p in sources), *(text.encode() for text in (*command[:-1], *system)))
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    library = cache_folder() / f"{type_name}-{digest[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True)
            with made.open("rb") as file:  # a library that is cut short kills who loads it
                os.fsync(file.fileno())
            made.replace(library)
    return library


def cache_folder() -> Path:
    """Raises OSError where there is no home to keep anything in."""
    if kept := os.environ.get("HUBQUANT_CACHE"):
        return Path(kept) / "native"
    try:
        return Path("~/.cache/hubquant/native").expanduser()
    except RuntimeError as error:
        raise OSError(str(error)) from None


def _processor() -> str:
    """What -march=native goes by: the processor's model and flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return " ".join(platform.uname())
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features", "isa")))
