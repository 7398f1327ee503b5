"""The scoreboard: every tool on the same model, calibration tokens and bits, each file measured by hubquant's evaluator.

python tests/benchmarks/scoreboard.py MODEL…                        every tool; what has a result is not run again
python tests/benchmarks/scoreboard.py MODEL… --tool hubquant --matched --again
                                                                    hubquant's rows anew; needs none of the peers' environments
python tests/benchmarks/scoreboard.py --show                        the tables of what is kept

Results are kept in tests/benchmarks/results/peers/; `make readme` makes the README's tables of them. Peers live in .cache/peers, or
in the folder that HUBQUANT_PEERS names; what the tools write goes to --work and is removed when it is measured, unless --keep.
"""

import argparse
import datetime
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from peers import artifacts, environments, tables
from peers.calibration import prepare
from peers.results import Results, Row, models
from peers.tools import TOOLS, Failed, Job, Made, Tool, remove

from hubquant.base import OpenBase, open_base
from hubquant.errors import HubquantError
from hubquant.evaluate.divergence import compare
from hubquant.evaluate.perplexity import windows

ROOT = Path(__file__).parents[2]
MAX_TOKENS = 16384


def run(model: Path, options: argparse.Namespace) -> None:
    """Make and measure what of the model's rows is missing."""
    results = Results(model.name)
    work = options.work.resolve() / model.name
    calibration = prepare(model, options.calibration, options.windows, options.window, work)
    for name in options.tool or TOOLS:
        tool = TOOLS[name]
        others = {row.variant for row in results.rows() if row.tool != name and row.evaluation is not None}
        asked = options.variant or (others if options.matched else tool.variants)
        wanted = [v for v in tool.variants if v in asked]
        missing = [v for v in wanted if options.again or results.get(name, v) is None]
        if not missing:
            continue
        environments.ensure(tool.environment)
        folder = work / name.replace(" ", "-")
        job = Job(model, calibration, folder, options.threads, options.iterations, tuple(missing), options.alone, options.again)
        for batch in [missing] if tool.together else [[variant] for variant in missing]:
            make_and_measure(name, tool, job, batch, options)
        show(results)


def make_and_measure(name: str, tool: Tool, job: Job, variants: list[str], options: argparse.Namespace) -> None:
    """Keep a row for each of these variants."""
    rows: dict[str, Row] = {}
    made: dict[str, Made] = {}
    for variant in variants:
        rows[variant], found = attempt(name, tool, job, variant)
        made |= {} if found is None else {variant: found}
    for variant, row in measured(job.model, rows, made, options).items():
        Results(job.model.name).keep(row)
        if not options.keep and variant in made:
            remove(made[variant].wrote)


def attempt(name: str, tool: Tool, job: Job, variant: str) -> tuple[Row, Made | None]:
    """The row of a variant, not yet measured, and what was made; of a tool that fails, the row says why."""
    row = Row(
        model=job.model.name,
        tool=name,
        version=environments.version(tool.environment),
        variant=variant,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command="",
        threads=job.threads,
        calibration=job.calibration.about,
        settings=tool.settings.format(iterations=job.iterations),
    )
    print(f"{row.date} {job.model.name}: {name}, {variant}", flush=True)
    try:
        made = tool.make(job, variant)
    except Failed as error:
        return replace(row, failed=str(error)), None
    return replace(row, steps=made.steps, command=made.command), made


def measured(model: Path, rows: dict[str, Row], made: Mapping[str, Made], options: argparse.Namespace) -> dict[str, Row]:
    """The rows with sizes and evaluations, all from the bytes on disk; one run of the base serves all."""
    opened: OpenBase = open_base(model)
    base = opened.decoder(dtype=torch.float32)
    decoders = {}
    n_parameters = sum(p.numel() for p in {id(p): p for p in base.model.parameters()}.values())
    for variant, path in ((variant, found.path) for variant, found in made.items()):
        try:
            decoders[variant] = opened.decoder(artifacts.source(path))
        except HubquantError as error:
            rows[variant] = replace(rows[variant], failed=f"what it wrote cannot be read: {error}")
            continue
        size = artifacts.size_bytes(path)
        bits = artifacts.matrices_bits(path, base)
        rows[variant] = replace(rows[variant], size_bytes=size, file_bits=8 * size / n_parameters, matrix_bits=bits)
    if decoders:
        max_tokens = options.max_tokens or tokens_of(Results(model.name).rows()) or MAX_TOKENS
        scored = windows(options.protocol, options.text, opened.tokenizer, max_tokens)
        for evaluation in compare(base, decoders, scored, lambda done, total: None):
            rows[evaluation.variant] = replace(rows[evaluation.variant], evaluation=evaluation)
    return rows


def tokens_of(rows: list[Row]) -> int:
    """How many tokens of the text the kept rows were measured on, so that new ones compare; 0 if there are none."""
    for protocol in (row.evaluation.protocol for row in rows if row.evaluation is not None):
        unscored = protocol.window // 2 if protocol.scored == "second half" else 0
        return protocol.n_tokens // (protocol.window - 1 - unscored) * protocol.window
    return 0


def show(results: Results) -> None:
    rows = results.rows()
    for headings, lines in ((tables.HEADINGS, tables.full_table(rows)), (tables.GOAL_HEADINGS, tables.goal_table(rows))):
        cells = [list(headings), *lines]
        widths = [max(len(line[i]) for line in cells) for i in range(len(headings))]
        print(f"\n{results.model}")
        print("\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells), flush=True)
    for failure in tables.failures(rows):
        print(f"not made: {failure}", flush=True)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", type=Path, metavar="MODEL", help="model folders")
    p.add_argument("--tool", action="append", choices=list(TOOLS), help="only this tool; repeat it")
    p.add_argument("--variant", action="append", help="only this variant; repeat it")
    p.add_argument("--matched", action="store_true", help="only variants that another tool has a row of")
    p.add_argument("--again", action="store_true", help="run again what has a result")
    p.add_argument("--show", action="store_true", help="only print what is kept")
    p.add_argument("--calibration", default="prose-calib", help="text that every tool calibrates on: a file, or a bundled one")
    p.add_argument("--windows", type=int, default=64, help="calibration windows")
    p.add_argument("--window", type=int, default=512, help="tokens per calibration window")
    p.add_argument("--text", default="prose-eval", help="text that is scored")
    p.add_argument("--protocol", default="gptq-512")
    p.add_argument("--max-tokens", type=int, help=f"tokens of it that are used; default: as in the kept rows, or {MAX_TOKENS}")
    p.add_argument("--threads", type=int, default=1, help="threads of every tool")
    p.add_argument("--iterations", type=int, default=200, help="auto-round's iterations per layer; its default is 200")
    p.add_argument("--alone", action="store_true", help="hubquant makes one variant per run, not all in one pass")
    p.add_argument("--work", type=Path, default=ROOT / ".cache/scoreboard")
    p.add_argument("--keep", action="store_true", help="leave what the tools wrote")
    return p


def main() -> None:
    options = parser().parse_args()
    for model in options.models:
        if not options.show:
            run(model.resolve(), options)
    for name in [model.resolve().name for model in options.models] or models():
        show(Results(name))


if __name__ == "__main__":
    main()
