"""The scoreboard's tables: every row of a model, and the goal's columns: ours against the best peer."""

from collections.abc import Callable
from dataclasses import dataclass

from hubquant.artifact import Evaluation
from hubquant.console import protocol_line, size
from peers.results import HUBQUANT, Results, Row

GOAL = 0.95  # of the best peer's mean KL divergence, at no more bits per weight
ROUNDING = 0.005  # bits per weight
TO_NEAREST = "auto-round RTN"  # which writes GPTQ's and AWQ's formats, and solves neither
ORDER = ("gptq-int4", "awq-int4", "gptq-int3", "gguf-")
HEADINGS = (
    "tool", "variant", "bits/weight", "of the matrices", "ppl ratio", "mean KL", "p99.9 KL", "top-1", "wall", "CPU", "peak memory",
)  # fmt: skip
GOAL_HEADINGS = ("variant", "best peer", "its mean KL", "its bits", "ours", "our bits", "ratio", "goal")


@dataclass(frozen=True)
class Score:
    """One variant: hubquant's row, the peers' best by mean KL divergence, either of which may be missing."""

    variant: str
    ours: Row | None
    best: Row | None

    @property
    def ratio(self) -> float | None:
        """Our mean KL divergence by the best peer's."""
        if self.ours is None or self.best is None:
            return None
        return _evaluation(self.ours).mean_kl / _evaluation(self.best).mean_kl

    @property
    def verdict(self) -> str:
        """'met', or what is missing."""
        if self.ratio is None or self.ours is None or self.best is None:
            return "—"
        if self.ratio > 1:
            return "worse than the peer"
        # a packed variant's name fixes codes and groups; what its layout adds (an index, zeros) differs by layout
        if self.variant.startswith("gguf-") and self.ours.matrix_bits > self.best.matrix_bits + ROUNDING:
            return "more bits"
        return "met" if self.ratio <= GOAL else f"above {GOAL}"


def scores(rows: list[Row]) -> list[Score]:
    """One Score per variant that anybody made. Raises ValueError for rows of different protocols or calibration tokens."""
    measured = [row for row in rows if row.evaluation is not None]
    if len({row.calibration.get("excerpt_sha256") for row in measured}) > 1:
        raise ValueError("rows of one model were calibrated on different tokens; give the same --calibration and --windows")
    if len({_evaluation(row).protocol for row in measured}) > 1:
        raise ValueError("rows of one model were measured under different protocols; measure them again with --again")
    found = []
    for variant in sorted({row.variant for row in measured}, key=order):
        mine = [row for row in measured if row.variant == variant]
        peers = [row for row in mine if row.tool != HUBQUANT]
        best = min(peers, key=lambda row: _evaluation(row).mean_kl, default=None)
        found.append(Score(variant, next((row for row in mine if row.tool == HUBQUANT), None), best))
    return found


def order(variant: str) -> tuple[int, float, str]:
    """GPTQ and AWQ first, then GGUF by nominal bits, most first."""
    place = next((i for i, start in enumerate(ORDER) if variant.startswith(start)), len(ORDER))
    digits = next((c for c in variant.removeprefix("gguf-") if c.isdigit()), "0")
    return place, -float(digits), variant


def full_table(rows: list[Row]) -> list[list[str]]:
    """Every row by variant and mean KL divergence, those that failed last."""
    ordered = sorted(rows, key=lambda row: (order(row.variant), row.evaluation.mean_kl if row.evaluation else float("inf")))
    return [[*_named(row), *_metrics(row), *_cost(row)] for row in ordered]


def goal_table(rows: list[Row]) -> list[list[str]]:
    lines = []
    for score in scores(rows):
        best, ours = score.best, score.ours
        lines.append(
            [
                f"`{score.variant}`",
                "—" if best is None else tool_name(best),
                *(("—", "—") if best is None else (f"{_evaluation(best).mean_kl:.6f}", f"{best.matrix_bits:.2f}")),
                *(("—", "—") if ours is None else (f"{_evaluation(ours).mean_kl:.6f}", f"{ours.matrix_bits:.2f}")),
                "—" if score.ratio is None else f"{score.ratio:.3f}",
                score.verdict,
            ]
        )
    return lines


def failures(rows: list[Row]) -> list[str]:
    return [f"{tool_name(row)}, {row.variant}: {row.failed}" for row in rows if row.failed]


def note(rows: list[Row]) -> str:
    """Protocol, calibration, versions and dates of the rows: what a number needs to be one."""
    evaluated = next(row for row in rows if row.evaluation is not None)
    calibration = evaluated.calibration
    versions = sorted({f"{row.tool} {row.version}" for row in rows})
    dates = sorted({row.date[:10] for row in rows})
    period = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"{protocol_line(_evaluation(evaluated).protocol)}. Every tool in float32, {evaluated.threads} thread of a shared machine, "
        f"calibrated on the same {calibration['windows']} windows of {calibration['window']} tokens of {calibration['text']}. "
        f"* includes what serves other variants too (a conversion, an "
        f"importance matrix, one pass for all). {', '.join(versions)}; {period}."
    )


def speed(rows: list[Row]) -> str:
    """CPU time of hubquant's variants beside the fastest peer's for each, shared steps counted once; '' if there are none. Where
    that rounds to nearest, also beside the fastest that does what its format is named after."""
    ours = {row.variant: row for row in rows if row.tool == HUBQUANT and row.steps and not row.failed}
    theirs = [row for row in rows if row.tool != HUBQUANT and row.variant in ours and row.evaluation is not None]
    fastest, solving = _fastest(theirs), _fastest([row for row in theirs if row.tool != TO_NEAREST])
    if not fastest:
        return ""

    def beside(peers: dict[str, Row]) -> str:
        mine, least = _cpu_seconds([ours[v] for v in peers]), _cpu_seconds(list(peers.values()))
        return f"({', '.join(sorted({row.tool for row in peers.values()}))}) {least:.0f} s: {mine / least:.2f} of it."

    mine = _cpu_seconds([ours[v] for v in fastest])
    said = f"CPU time for these {len(fastest)} variants: hubquant {mine:.0f} s, the fastest peer for each {beside(fastest)}"
    if solving == fastest or solving.keys() != fastest.keys():
        return said
    return f"{said} Without those that round to nearest {beside(solving)}"


def _fastest(rows: list[Row]) -> dict[str, Row]:
    """By variant."""
    return {row.variant: row for row in sorted(rows, key=lambda row: -row.cpu_seconds)}


def _cpu_seconds(rows: list[Row]) -> float:
    """Of all the rows' steps; one that several rows of a tool share counts once."""
    shared = {(row.tool, step) for row in rows for step in row.steps if step.shared}
    own = sum(step.cpu_seconds for row in rows for step in row.steps if not step.shared)
    return own + sum(step.cpu_seconds for _, step in shared)


def model_tables(results: Results, table: Callable[[list[str], list[list[str]]], str]) -> str:
    rows = results.rows()
    base = next(row for row in rows if row.evaluation is not None)
    parts = [
        f"**{results.model}**, base perplexity {_evaluation(base).base_perplexity:.3f}.",
        table(list(GOAL_HEADINGS), goal_table(rows)),
        "<details><summary>Every row</summary>",
        table(list(HEADINGS), full_table(rows)),
        "</details>",
        *filter(None, [speed(rows)]),
        *(f"Not made: {failure}." for failure in failures(rows)),
        note(rows),
    ]
    return "\n\n".join(parts)


def tool_name(row: Row) -> str:
    return f"{row.tool}, {row.settings}" if row.settings else row.tool


def _named(row: Row) -> list[str]:
    bits = [f"{row.file_bits:.2f}", f"{row.matrix_bits:.2f}"] if row.evaluation else ["—", "—"]
    return [tool_name(row), f"`{row.variant}`", *bits]


def _metrics(row: Row) -> list[str]:
    if row.evaluation is None:
        return ["not made" if row.failed else "not measured", "—", "—", "—"]
    e = row.evaluation
    return [f"{e.perplexity_ratio:.4f}", f"{e.mean_kl:.6f}", f"{e.p999_kl:.3f}", f"{100 * e.top1_agreement:.1f} %"]


def _cost(row: Row) -> list[str]:
    """Shared steps are counted in every row that needed them, and marked."""
    mark = " *" if any(step.shared for step in row.steps) else ""
    return [f"{row.wall_seconds:.0f} s{mark}", f"{row.cpu_seconds:.0f} s{mark}", size(row.peak_bytes)] if row.steps else ["—"] * 3


def _evaluation(row: Row) -> Evaluation:
    assert row.evaluation is not None
    return row.evaluation
