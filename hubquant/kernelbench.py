"""The kernels timed on a GPU, side by side with what else computes the same. Writes one CSV; nothing here runs without a GPU.

Each implementation of a case is timed by CUDA events with the L2 cache flushed between runs (triton.testing.do_bench): the
median, and the 20 % and 80 % quantiles. It is replayed from a CUDA graph, so that what is timed is the GPU's work and not how
long Python takes to ask for it; what that adds is seen in `called_ms`, the median of plain calls. The definitions, some of which
wait for results on the way, have that time alone. What takes longer than SLOW is run twice, and the second run is its time.
"compiled definition" is the operator's plain torch through torch.compile.
"""

import csv
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hubquant.errors import HubquantError, UsageError

COLUMNS = (
    "kernel",
    "shape",
    "implementation",
    "ms",
    "ms_20",
    "ms_80",
    "called_ms",
    "gb_per_s",
    "tflop_per_s",
    "error",
    "device",
    "versions",
    "time",
)
PACKAGES = ("hubquant", "torch", "triton", "gptqmodel")
WARM_UP, REPEAT, SLOW = 20, 60, 200.0  # milliseconds
QUANTILES = [0.5, 0.2, 0.8]
HERE = Path(__file__).parent
FOLDERS = (HERE / "kernelbenchmarks", HERE.parent / "kernels" / "benchmarks")  # of a wheel, of a checkout


def bench(out: Path, only: str = "", compiled: bool = True, progress: Callable[[str], None] = lambda line: None) -> int:
    """Run every benchmark whose kernel's name contains `only` and write `out`; returns how many cases were run.

    `compiled`: definitions are timed as torch.compile makes them too, which takes minutes for those with long loops.

    `progress` is called with one line per row. Raises HubquantError where no GPU is to be seen or triton is missing.
    """
    if not torch.cuda.is_available():
        raise HubquantError("no GPU is visible to torch, and kernels are timed on one; kernels/REPORT.md has static bounds instead")
    if importlib.util.find_spec("triton") is None:
        raise HubquantError("the kernels need the package triton; install it with: pip install 'hubquant[gpu]'")
    chosen = [case for case in cases(benchmarks_folder()) if only in case.kernel]
    if not chosen:
        raise UsageError(f"no benchmark's kernel has {only!r} in its name")
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for case in chosen:
            for row in rows(case, compiled):
                writer.writerow(row)
                file.flush()  # what was measured stays if a later case fails
                progress(f"{row['kernel']}, {row['shape']}, {row['implementation']}: {row['ms'] or row['error']}")
    return len(chosen)


def benchmarks_folder() -> Path:
    """Where the benchmark files are. Raises HubquantError if neither place has them."""
    for folder in FOLDERS:
        if (folder / "case.py").exists():
            return folder
    raise HubquantError(f"no benchmarks in {' or '.join(map(str, FOLDERS))}; install hubquant again")


def cases(folder: Path) -> list[Any]:
    """The cases of every file in `folder`, in their order."""
    found = [_module(folder, "case")]
    found += [_module(folder, path.stem) for path in sorted(folder.glob("*.py")) if path.stem != "case"]
    return [case for module in found[1:] for case in module.cases()]


def rows(case: Any, compiled: bool = True) -> Iterator[dict[str, object]]:
    """One row per implementation of a case. One that fails or does not fit into memory is a row with its error."""
    from triton.runtime.errors import TritonError

    torch.cuda.empty_cache()
    try:
        runs: Mapping[str, Callable[[], object]] = case.prepare()
    except (RuntimeError, ImportError) as error:  # torch.OutOfMemoryError is a RuntimeError
        yield _row(case, "prepare", None, error)
        return
    named = dict(runs)
    if compiled and "definition" in runs:
        named["compiled definition"] = torch.compile(runs["definition"])
    for name, run in named.items():
        try:
            yield _row(case, name, _time(run, in_graph="definition" not in name), None)
        except (RuntimeError, TritonError) as error:
            yield _row(case, name, None, error)


@dataclass(frozen=True)
class Times:
    """Milliseconds: median, 20 % and 80 % quantile of the GPU's work, and the median of plain calls."""

    middle: float
    low: float
    high: float
    called: float


def _time(run: Callable[[], object], in_graph: bool) -> Times:
    from triton.testing import do_bench

    run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    once = 1000 * (time.perf_counter() - started)
    if once > SLOW:
        return Times(once, once, once, once)
    called, low, high = do_bench(run, warmup=WARM_UP, rep=REPEAT, quantiles=QUANTILES)
    if not in_graph:
        return Times(called, low, high, called)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    middle, low, high = do_bench(graph.replay, warmup=WARM_UP, rep=REPEAT, quantiles=QUANTILES)
    return Times(middle, low, high, called)


def _row(case: Any, name: str, times: Times | None, error: Exception | None) -> dict[str, object]:
    measured: dict[str, object] = {}
    if times:
        middle = times.middle
        measured = {"ms": f"{middle:.5f}", "ms_20": f"{times.low:.5f}", "ms_80": f"{times.high:.5f}"}
        measured["called_ms"] = f"{times.called:.5f}"
        measured["gb_per_s"] = f"{case.memory_bytes / middle / 1e6:.1f}"
        measured["tflop_per_s"] = f"{case.operations / middle / 1e9:.2f}" if case.operations else ""
    return {
        **dict.fromkeys(COLUMNS, ""),
        "kernel": case.kernel,
        "shape": case.shape,
        "implementation": name,
        **measured,
        "error": f"{type(error).__name__}: {str(error).splitlines()[0]}" if error else "",
        "device": torch.cuda.get_device_name(),
        "versions": " ".join(f"{package} {number}" for package, number in _versions().items()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _module(folder: Path, name: str) -> ModuleType:
    """A benchmark file as a module of its own; `case` under that name, by which the others import it."""
    spec = importlib.util.spec_from_file_location(name if name == "case" else f"benchmark_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
