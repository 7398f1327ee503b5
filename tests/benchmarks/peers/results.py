"""The kept results: one JSON file per model, tool and variant, so that a run that was stopped goes on where it stood."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubquant.artifact import Evaluation

RESULTS = Path(__file__).parents[1] / "results" / "peers"
HUBQUANT = "hubquant"


@dataclass(frozen=True)
class Step:
    """What one process of a tool took. `shared`: it served all of the tool's variants (a conversion, an importance matrix)."""

    name: str
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    shared: bool = False


@dataclass(frozen=True)
class Row:
    """One tool's variant of one model. `settings`: what differs from the tool's default; `failed`: why there is nothing to measure.

    `file_bits` counts the whole files by the base's parameters, `matrix_bits` the layers' matrices by theirs.
    """

    model: str
    tool: str
    version: str
    variant: str
    date: str
    command: str
    threads: int
    calibration: dict[str, Any]
    settings: str = ""
    steps: tuple[Step, ...] = ()
    size_bytes: int = 0
    file_bits: float = 0.0
    matrix_bits: float = 0.0
    evaluation: Evaluation | None = None
    failed: str = ""

    @property
    def wall_seconds(self) -> float:
        return sum(step.wall_seconds for step in self.steps)

    @property
    def cpu_seconds(self) -> float:
        return sum(step.cpu_seconds for step in self.steps)

    @property
    def peak_bytes(self) -> int:
        return max((step.peak_bytes for step in self.steps), default=0)


@dataclass(frozen=True)
class Results:
    """The results of one model. Reading a file that is no result raises KeyError or TypeError: delete it."""

    model: str
    folder: Path = field(default=RESULTS)

    def path(self, tool: str, variant: str) -> Path:
        return self.folder / self.model / f"{_plain(tool)}.{variant}.json"

    def get(self, tool: str, variant: str) -> Row | None:
        path = self.path(tool, variant)
        return _row(path) if path.exists() else None

    def rows(self) -> list[Row]:
        return [_row(path) for path in sorted((self.folder / self.model).glob("*.json"))]

    def keep(self, row: Row) -> None:
        path = self.path(row.tool, row.variant)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = asdict(row) | {"evaluation": row.evaluation.model_dump() if row.evaluation else None}
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps(values, indent=1) + "\n")
        partial.replace(path)


def models(folder: Path = RESULTS) -> list[str]:
    """The models of which something was measured, by name."""
    found = sorted(path.name for path in folder.glob("*") if path.is_dir())
    return [name for name in found if any(row.evaluation is not None for row in Results(name, folder).rows())]


def _plain(tool: str) -> str:
    """The tool's name in a file's: 'auto-round RTN' is auto-round-rtn."""
    return re.sub(r"[^a-z0-9.]+", "-", tool.lower())


def _row(path: Path) -> Row:
    values = json.loads(path.read_text())
    found = values.pop("evaluation")
    steps = tuple(Step(**step) for step in values.pop("steps"))
    return Row(**values, steps=steps, evaluation=None if found is None else Evaluation(**found))
