"""What people see: bars while it works, on stderr; tables when it is done, on stdout or, where that carries JSON, on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from hubquant.artifact import Evaluation, Protocol, Report
from hubquant.progress import Progress

if TYPE_CHECKING:  # it imports torch
    from hubquant.plan import Plan

STAGES = {"quantize": "one pass over the layers", "refine": "refining scales", "evaluate": "measuring base and variants"}


def people(json_wanted: bool = False) -> Console:
    """Where tables go: stdout, or stderr when stdout carries JSON."""
    return Console(stderr=json_wanted, highlight=False, width=None if sys.stdout.isatty() else 140)


@contextmanager
def bars(console: Console | None = None) -> Iterator[Progress]:
    """A Progress that draws one bar per stage on the console (stderr if none is given), if that is a terminal."""
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("layers"), TimeElapsedColumn())
    with Bars(*columns, console=console, disable=not console.is_terminal) as drawn:
        tasks = {stage: drawn.add_task(text, total=None, visible=False) for stage, text in STAGES.items()}

        def tell(stage: str, done: int, total: int) -> None:
            drawn.update(tasks[stage], completed=done, total=total, visible=True)

        yield tell


def size(n_bytes: float) -> str:
    """Bytes for people, in powers of 1000 as disks and the Hub count them."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def protocol_line(protocol: Protocol) -> str:
    """The protocol in one line; two numbers compare only if it is the same."""
    return (
        f"{protocol.name}: text {protocol.text} (sha256 {protocol.text_sha256[:12]}), windows of {protocol.window}, "
        f"stride {protocol.stride}, BOS {protocol.bos}, scored: {protocol.scored}, {protocol.n_tokens:,} tokens"
    )


def report_tables(report: Report) -> Iterator[Table | str]:
    """The report for people: one table per protocol, then notes and what the gate stopped."""
    protocols = list(dict.fromkeys(e.protocol for e in report.evaluations))
    for protocol in protocols:
        yield _table(report, protocol)
    if not protocols:
        yield _table(report, None)
    yield from (f"note: {note}" for note in report.notes)
    kept = [t for a in report.artifacts for t in a.tensors if t.note]
    if kept:
        yield f"note: {len(kept)} tensors deviate from their variant's rule, for example {kept[0].name}: {kept[0].note}"
    yield from (f"stopped by the gate: {v.variant}: {v.reason}" for v in report.verdicts if not v.passed)
    on_device = f", {size(report.peak_device_memory_bytes)} on the {report.device}" if report.peak_device_memory_bytes else ""
    peak = f"{size(report.peak_memory_bytes)}{on_device}"
    yield f"{report.calibration_tokens:,} calibration tokens, {report.seconds:.0f} s, peak memory {peak}"


def plan_tables(plan: "Plan") -> Iterator[Table | str]:
    """A plan for people: a table of the variants, then what they need and what there is."""
    table = Table(title=f"{plan.model}, {plan.parameters / 1e6:,.1f} M parameters")
    table.add_column("variant")
    table.add_column("size", justify="right")
    table.add_column("repo")
    for each in plan.variants:
        table.add_row(each.variant, "–" if each.declined else size(each.size_bytes), each.declined or each.repo_id or "–")
    yield table
    needs, available = plan.needs, plan.memory_available
    yield f"memory {size(needs.memory_bytes)}" + ("" if available is None else f" of {size(available)} available")
    yield f"disk {size(needs.disk_bytes)} of {size(plan.disk_free)} free; {size(needs.output_bytes)} stay"
    yield f"time about {max(1, round(needs.seconds / 60))} min for the pass, measuring not counted"
    if plan.policy:
        yield f"policy: {plan.policy}"


def _table(report: Report, protocol: Protocol | None) -> Table:
    caption = protocol_line(protocol) if protocol else "not measured yet: hubquant evaluate"
    table = Table(title=report.base.repo_id, caption=caption, caption_justify="left")
    table.add_column("variant")
    for heading in ("size", "bits/weight", *METRICS):
        table.add_column(heading, justify="right")
    for artifact in report.artifacts:
        found = [e for e in report.evaluations if e.variant == artifact.variant and e.protocol == protocol]
        table.add_row(
            artifact.variant,
            size(artifact.size_bytes),
            f"{artifact.bits_per_weight:.3f}",
            *(metrics(found[0]) if found else ("–",) * len(METRICS)),
        )
    return table


METRICS = ("perplexity", "ratio", "mean KL", "p99 KL", "top-1")


def metrics(e: Evaluation) -> tuple[str, ...]:
    """The numbers under METRICS, for one row."""
    ratio, top1 = f"{e.perplexity_ratio:.4f}", f"{100 * e.top1_agreement:.1f} %"
    return f"{e.perplexity:.3f}", ratio, f"{e.mean_kl:.5f}", f"{e.p99_kl:.4f}", top1
