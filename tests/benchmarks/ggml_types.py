"""Every block type against ggml: bits per weight, share of identical blocks, weighted error, and speed.

python tests/benchmarks/ggml_types.py                 prints the table, and keeps it as results/ggml/types.json for the README
python tests/benchmarks/ggml_types.py Q4_K IQ4_XS     renews these rows

Speeds are megabytes of float32 weights per second of CPU time on one thread, the best of ROUNDS; ggml is llama.cpp's own
library where llama-cpp-python is installed (make types), else the package libgguf. All share one tensor: rows of the bundled
model. The importance is made up and spread over four decades, as mean squared inputs are. The types that are as good as copied
are also held to memory: LARGE weights against a copy that reads and writes as many bytes in all.
"""

import ctypes
import importlib.util
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import libgguf
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from hubquant.quantize.ggml import GGML_TYPES, NEEDS_IMPORTANCE, GgmlType, decode, encode, ggml_type
from hubquant.quantize.iquant import IQ_TYPES

KEPT = Path(__file__).parent / "results" / "ggml" / "types.json"
ROUNDS = 2
ROUNDS_OF_MEMORY = 9  # milliseconds each
ROWS = 2048
LARGE = 1 << 24
COPIED = ("Q8_0", "Q4_0")

Encode = Callable[[Tensor, GgmlType, Tensor | None], Tensor]


def by_libgguf(weight: Tensor, kind: GgmlType, importance: Tensor | None) -> Tensor:
    given = None if importance is None else importance.numpy()
    return torch.from_numpy(libgguf.quantize_rows(weight.numpy(), kind.value, given))


def ggml() -> tuple[str, Encode]:
    """Name and encoder of the fastest ggml there is."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return f"libgguf {version('libgguf')}", by_libgguf
    library = ctypes.CDLL(str(next(Path(found.origin).parent.glob("lib/libggml-base.so*"))))
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def encoded(weight: Tensor, kind: GgmlType, importance: Tensor | None) -> Tensor:
        out = np.empty((len(weight), weight.shape[1] // kind.block_size * kind.type_size), np.uint8)
        given = None if importance is None else importance.data_ptr()
        quantize(kind.value, weight.data_ptr(), out.ctypes.data, 0, *weight.shape, given)
        return torch.from_numpy(out)

    return f"llama-cpp-python {version('llama-cpp-python')}", encoded


def weights() -> Tensor:
    """Rows of 256 weights of the bundled model's linears [ROWS, 256]."""
    model = load_file(str(files("hubquant") / "demo/data/model/model.safetensors"))
    return torch.cat([t.float() for n, t in model.items() if t.ndim == 2 and "layers" in n and t.shape[1] == 256])[:ROWS].clone()


def cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def speed(weight: Tensor, encoded: Callable[[], Tensor], rounds: int = ROUNDS) -> float:
    """Megabytes per CPU second."""
    spent = []
    for _ in range(rounds):
        started = time.process_time()
        encoded()
        spent.append(time.process_time() - started)
    return weight.numel() * 4e-6 / min(spent)


def error(data: Tensor, weight: Tensor, kind: GgmlType, importance: Tensor | None) -> float:
    squares = (decode(data, kind.name).double() - weight.double()).square()
    return float((squares if importance is None else squares * importance.double()).sum())


def measure(kind: GgmlType, weight: Tensor, importance: Tensor | None, theirs: Encode) -> dict[str, Any]:
    """`warm_up`: CPU seconds of the first call, in which a type's machine code is compiled, beyond those of the next."""
    started = cpu_seconds()
    encode(weight, kind.name, importance, "reference")
    first, started = cpu_seconds() - started, cpu_seconds()
    reference = encode(weight, kind.name, importance, "reference")
    warm_up = first - (cpu_seconds() - started)
    best, expected = encode(weight, kind.name, importance, "best"), theirs(weight, kind, importance)
    return {
        "identical": float((reference == expected).view(-1, kind.type_size).all(1).float().mean()),
        "error": error(best, weight, kind, importance) / error(expected, weight, kind, importance),
        "ggml": speed(weight, lambda: theirs(weight, kind, importance)),
        "reference": speed(weight, lambda: encode(weight, kind.name, importance, "reference")),
        "best": speed(weight, lambda: encode(weight, kind.name, importance, "best")),
        "warm_up": max(0.0, warm_up),
    }


def memory(kind: GgmlType) -> dict[str, float]:
    """Megabytes of weights per CPU second: copied with as many bytes read and written as encoding takes, and encoded."""
    weight = torch.randn(LARGE // 4096, 4096, generator=torch.Generator().manual_seed(5))
    source = torch.ones((4 * LARGE + LARGE // kind.block_size * kind.type_size) // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    copied = speed(weight, lambda: target.copy_(source), ROUNDS_OF_MEMORY)
    return {"copy": copied, "reference": speed(weight, lambda: encode(weight, kind.name, mode="reference"), ROUNDS_OF_MEMORY)}


def line(name: str, how: str, found: dict[str, Any]) -> str:
    ours = "  ".join(f"{mode} {found[mode] / found['ggml']:.2f}x" for mode in ("reference", "best"))
    return (
        f"{name:8} {how:10} identical {found['identical']:.4%}  error {found['error']:.3f}  ggml {found['ggml']:.0f} MB/s  {ours}"
        f"  warm-up {found['warm_up']:.1f} s"
    )


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    wanted = arguments or [name for name, kind in GGML_TYPES.items() if kind.block_size > 1]
    name, theirs = ggml()
    weight = weights()
    importance = torch.exp(2 * torch.randn(256, generator=torch.Generator().manual_seed(3)))
    kept = {"types": {}, "memory": {}} | (json.loads(KEPT.read_text()) if KEPT.exists() else {})
    kept |= {"ggml": name, "torch": torch.__version__, "weights": weight.numel(), "large": LARGE}
    with tempfile.TemporaryDirectory() as cold:
        os.environ["HUBQUANT_CACHE"] = cold
        for kind in map(ggml_type, wanted):
            kept["earlier"] = [earlier for earlier in kept.get("earlier", ()) if earlier != kind.name]
            row = kept["types"][kind.name] = {"bits_per_weight": kind.bits_per_weight, "ours": kind.name not in IQ_TYPES}
            for how, given in (("plain", None), ("importance", importance)):
                if given is not None or kind.name not in NEEDS_IMPORTANCE:
                    row[how] = measure(kind, weight, given, theirs)
                    print(line(kind.name, how, row[how]), flush=True)
            if kind.name in COPIED:
                kept["memory"][kind.name] = found = memory(kind)
                print(f"{kind.name:8} {LARGE} weights: {found['reference']:.0f} MB/s, a copy {found['copy']:.0f} MB/s", flush=True)
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            KEPT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
