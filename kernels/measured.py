"""What `hubquant kernels bench` measured on a GPU, kept in measured/*.csv, beside what the machine code allows at best."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parts import PARTS

H100 = Path(__file__).parent / "measured" / "h100.csv"
OURS = "triton"
HEADINGS = ("kernel", "size", "µs", "called", "of the copy", "of the product", "of issue", "others, times as long")


@dataclass(frozen=True)
class Case:
    """One kernel at one size: rows of the CSV by implementation."""

    kernel: str
    shape: str
    rows: Mapping[str, Mapping[str, str]]

    def milliseconds(self, implementation: str = OURS) -> float:
        return float(self.rows[implementation]["ms"])

    @property
    def own(self) -> list[str]:
        return [name for name in self.rows if name.startswith(OURS)]

    @property
    def others(self) -> dict[str, float]:
        """Milliseconds by what else computes the same."""
        return {name: self.milliseconds(name) for name in self.rows if not name.startswith(OURS)}


@dataclass(frozen=True)
class Measured:
    """All of one CSV. `copy`: bytes per second of the largest copy; `product`: operations per second of the bfloat16 product."""

    device: str
    versions: str
    cases: tuple[Case, ...]
    copy: float
    product: float

    def case(self, kernel: str, shape: str) -> Case:
        return next(c for c in self.cases if (c.kernel, c.shape) == (kernel, shape))

    def of_copy(self, case: Case, name: str = OURS) -> float:
        """What has to be read and written at least, by the time it took, as a share of the copy's speed."""
        return 1e9 * float(case.rows[name]["gb_per_s"]) / self.copy

    def of_product(self, case: Case, name: str = OURS) -> float | None:
        rate = case.rows[name]["tflop_per_s"]
        return 1e12 * float(rate) / self.product if rate else None


def read(path: Path = H100) -> Measured:
    """The kept CSV. A copy in a graph is the copy engine's, and slower: ceilings are the faster of replayed and called."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    grouped: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for row in rows:
        grouped.setdefault((row["kernel"], row["shape"]), {})[row["implementation"]] = row
    cases = tuple(Case(*key, found) for key, found in grouped.items())

    def best(kernel: str, shape: str, column: str) -> float:
        row = grouped[kernel, shape]["torch"]
        return float(row[column]) * float(row["ms"]) / min(float(row["ms"]), float(row["called_ms"]))

    copy = 1e9 * best("copy", "1 GiB", "gb_per_s")
    product = 1e12 * best("product", "bfloat16, 8192 x 8192 x 8192", "tflop_per_s")
    return Measured(rows[0]["device"], rows[0]["versions"], cases, copy, product)


def of_issue(case: Case, name: str, per_weight: Mapping[str, float]) -> float | None:
    """The time that issuing the instructions of an encoder takes at least, as a share of what it took. `per_weight`: instructions
    of a warp for a weight by block type."""
    kind, _, size = case.shape.partition(", ")
    if case.kernel != "ggml_quantize" or kind not in per_weight:
        return None
    out, width = (int(number) for number in size.split(",")[0].split(" x "))
    return 1000 * out * width * per_weight[kind] / PARTS["sm_90"].issue / case.milliseconds(name)


def row(measured: Measured, case: Case, name: str, per_weight: Mapping[str, float]) -> list[str]:
    """One line of the table under HEADINGS."""
    ms, called = case.milliseconds(name), case.rows[name]["called_ms"]
    shares = (measured.of_copy(case, name), measured.of_product(case, name), of_issue(case, name, per_weight))
    others = ", ".join(f"{other} {theirs / ms:.3g}" for other, theirs in case.others.items()) if name == OURS else ""
    part = name.removeprefix(OURS).removeprefix(", ")
    return [
        f"`{case.kernel}`",
        case.shape + (f": {part}" if part else ""),
        f"{1000 * ms:.4g}",
        f"{1000 * float(called):.4g}" if called else "",
        *(f"{100 * share:.0f} %" if share is not None else "" for share in shares),
        others,
    ]


def rows(measured: Measured, per_weight: Mapping[str, float]) -> list[list[str]]:
    return [row(measured, case, name, per_weight) for case in measured.cases for name in case.own]
