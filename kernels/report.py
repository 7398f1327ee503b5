"""Every shipped kernel configuration compiled for every GPU it is shipped for, without a GPU, and what the machine code says.

    python kernels/report.py            # writes REPORT.md and report.json beside this file
    python kernels/report.py --check    # compares with them; exit status 1 and a sentence for each thing that is wrong

A second run takes seconds: figures are kept under a hash of the kernel's source and of all that it is compiled with.
"""

import argparse
import importlib
import json
import os
import pkgutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import hubquant_kernels.gpu
import measured
from hubquant_kernels.gpu.compilation import Compilation
from machinecode import Figures, measure
from parts import KIB, PARTS, Part

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "kernels"
REPORT, COMMITTED = HERE / "REPORT.md", HERE / "report.json"
WORKERS = 2
SLACK = 1.05
ALIKE = {"sm_100": "sm_80"}  # whose tensor-core instructions name no shape; the same tiles are multiplied on both
LOWER_IS_BETTER = ("registers", "shared", "instructions", "loop", "whole")
HIGHER_IS_BETTER = ("tensor", "wide_loads", "wide_copies")
COLUMNS = (
    "configuration | regs | spills | shared | tensor | ld128 | cp128 | "
    "loop | /weight | whole/weight | memory | issue | tensor bound"
)
Table = dict[str, dict[str, Figures]]

HEAD = """# What the kernels compile to

**Every figure here is static, but for the last section: read from machine code that was compiled without a GPU, and a bound is
what the part could do at best. The last section was measured on an H100.** Written by `python kernels/report.py`, checked in CI by
`make test-kernels`: no spills, tensor-core instructions where meant, shared memory within the part's limit, 128-bit loads
where meant, and no figure more than 5 % worse than here.

- **tensor**: tensor-core instructions. **ld128**, **cp128**: 128-bit loads into registers, asynchronous 128-bit copies.
- **loop**: instructions of the innermost loop; **/weight**: instructions of a warp per weight in one trip of it.
- **whole/weight**: instructions of a warp per weight for the whole program, every loop as often as it turns (walk.py). A search
  (ggml_quantize) takes each weight through all trips; more than 25 fail the check.
- **memory**, **issue**, **tensor bound**: the time that the loop needs at least on the part for what it reads, for issuing its
  instructions, and for its tensor-core operations, as a percentage of the longest of the three. 100 % names what limits; 90 %
  under *memory* says that the kernel can reach 90 % of the memory's speed as far as instructions go.
"""

MEASURED = """## Measured: {device}

`hubquant kernels bench --no-compiled`, {versions}, driver 580.159.04; kept in measured/h100.csv. Medians of runs with the L2
cache flushed between them, replayed from a CUDA graph; **called**: the same asked for from Python. **of the copy**, **of the
product**: what has to be read and written at least and what has to be multiplied, by the time, as a share of {ceilings}, measured
in the same run. **of issue**: the time that issuing the encoder's instructions takes at least (whole/weight above), as a share of
its time. **others**: how many times as long as ours the plain torch of the definition, or what is named, takes. Read so:

- Encoding (`ggml_quantize`) takes what its instructions take; `ggml_dequantize`, `round_and_pack` and `repack_words` to awq come
  near the copy. Hessians of half-precision inputs take a tenth of torch's float32.
- `matmul_gptq`, `matmul_awq` read at a third of the copy's speed, where the static bound says all of it: 1.2 to 1.7 times as fast
  as float16 up to 32 rows, slower from 64 or 128 rows on. More splits or stages do not help; why is not known.
- `ggml_matmul` is twice as fast as float16 for a row, as fast for 4 and slower beyond.
- `accumulate_hessian` of float32 is hardly faster than torch's float32, and for a width of 2048 no faster.
- `divergence_of_heads` saves the memory of the logits and takes 2.6 to 3.7 times as long as making them in bfloat16.
- `gptq_group` was timed in its two parts, when its search multiplied errors with a whole metric and one scale was rounded. Now it
  goes by the metric's diagonal and seven scales are rounded: not timed on a GPU yet.

"""


def compilations() -> list[Compilation]:
    """Of all files in hubquant_kernels/gpu, by name. Raises ValueError if two have the same."""
    found: dict[str, Compilation] = {}
    for module in pkgutil.iter_modules(hubquant_kernels.gpu.__path__):
        for one in getattr(importlib.import_module(f"hubquant_kernels.gpu.{module.name}"), "COMPILATIONS", ()):
            if one.name in found:
                raise ValueError(f"two shipped configurations are called {one.name!r}")
            found[one.name] = one
    return [found[name] for name in sorted(found)]


def tabulate(chosen: list[Compilation]) -> Table:
    """Figures by configuration and target, from two processes."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE / "triton"))
    pairs = [(c.name, target) for c in chosen for target in c.targets]
    with ProcessPoolExecutor(WORKERS) as workers:
        figures = list(workers.map(_figures, *zip(*pairs, strict=True)))
    table: Table = {c.name: {} for c in chosen}
    for (name, target), one in zip(pairs, figures, strict=True):
        table[name][target] = one
    return table


def _figures(name: str, target: str) -> Figures:
    return measure(next(c for c in compilations() if c.name == name), target, CACHE)


def problems(compilation: Compilation, target: str, figures: Figures, committed: Figures | None) -> list[str]:
    """What must not be, in sentences. `committed`: the figures of report.json."""
    where, part = f"{compilation.name} on {target}", PARTS[target]
    found = []
    if figures.spills:
        found.append(f"{where}: registers are spilled ({figures.spills})")
    if figures.shared > part.shared:
        found.append(f"{where}: {figures.shared} bytes of shared memory, and a program on {part.name} may have {part.shared}")
    if compilation.tensor_cores and not figures.tensor:
        found.append(f"{where}: no tensor-core instruction")
    if compilation.wide_loads and not figures.wide_loads + figures.wide_copies:
        found.append(f"{where}: nothing is loaded 128 bits wide")
    if compilation.most_per_weight and not 0 < whole_per_weight(compilation, figures) <= compilation.most_per_weight:
        counted = f"{whole_per_weight(compilation, figures):.1f} instructions of a warp per weight"
        found.append(f"{where}: {counted}, and at most {compilation.most_per_weight:.0f} are allowed")
    if committed is None:
        return [*found, f"{where}: not in report.json; run python kernels/report.py"]
    for metric in LOWER_IS_BETTER + HIGHER_IS_BETTER:
        before, now = getattr(committed, metric), getattr(figures, metric)
        if now > before * SLACK if metric in LOWER_IS_BETTER else now * SLACK < before:
            found.append(f"{where}: {metric} was {before} and is {now}")
    return found


def whole_per_weight(compilation: Compilation, figures: Figures) -> float:
    return figures.whole * compilation.num_warps / compilation.weights


def bounds(compilation: Compilation, figures: Figures, part: Part) -> tuple[float, float, float]:
    """Memory, issue and tensor-core time of one trip of the innermost loop, each as a fraction of the longest."""
    warps = compilation.num_warps
    times = (
        compilation.bytes_read / part.bandwidth,
        figures.loop * warps / part.issue,
        figures.loop_tensor * warps / part.tensor,
    )
    return tuple(t / max(times) for t in times)


def render(chosen: list[Compilation], table: Table) -> str:
    """The static part of REPORT.md."""
    lines = [HEAD, *_narrow(chosen)]
    for target, part in PARTS.items():
        rates = (
            f"{part.sms} SMs at {part.clock / 1e9:.2f} GHz, {part.bandwidth / 1e12:.2f} TB/s, {part.tensor / 1e12:.0f} Tflop/s fp16"
        )
        lines += [f"## {target}: {part.name}\n", f"{rates}\n", f"| {COLUMNS} |", "|---|" + "---:|" * COLUMNS.count("|")]
        for one in (c for c in chosen if target in c.targets):
            row = table[one.name]
            lines.append(_row(one, row[target], part, row.get(ALIKE.get(target, target))))
        lines += [""]
    return "\n".join(lines)


def document(chosen: list[Compilation], table: Table) -> str:
    """REPORT.md."""
    return "\n".join([render(chosen, table), *_measured(table), ""])


def _measured(table: Table) -> list[str]:
    """What was measured on an H100, beside the instructions that its machine code takes for a weight."""
    found = measured.read()
    per_weight = {}
    for one in (c for c in compilations() if c.most_per_weight and "sm_90" in table.get(c.name, {})):
        kind = one.name.removeprefix("ggml_quantize/").removesuffix("-importance").upper()
        per_weight[kind] = whole_per_weight(one, table[one.name]["sm_90"])
    ceilings = f"{found.copy / 1e12:.2f} TB/s of a copy and {found.product / 1e12:.0f} Tflop/s of a bfloat16 product of 8192³"
    lines = MEASURED.format(device=found.device, versions=found.versions, ceilings=ceilings).splitlines()
    lines += [f"| {' | '.join(measured.HEADINGS)} |", "|---|---|" + "---:|" * (len(measured.HEADINGS) - 3) + "---|"]
    return lines + [f"| {' | '.join(row)} |" for row in measured.rows(found, per_weight)]


def _narrow(chosen: list[Compilation]) -> list[str]:
    """Why nothing is asked to be loaded 128 bits wide, by operator."""
    reasons = {c.why_narrow: {o.name.split("/")[0] for o in chosen if o.why_narrow == c.why_narrow} for c in chosen if c.why_narrow}
    if not reasons:
        return []
    lines = [f"- {', '.join(f'`{name}`' for name in sorted(names))}: {why}." for why, names in reasons.items()]
    return ["Not asked to load 128 bits wide:\n", *lines, ""]


def _row(compilation: Compilation, figures: Figures, part: Part, alike: Figures | None) -> str:
    known = Figures(**{**asdict(figures), "loop_tensor": alike.loop_tensor}) if alike else figures
    per_weight, whole, limits = "", "", ("", "", "")
    if compilation.most_per_weight:
        whole = f"{whole_per_weight(compilation, figures):.1f}"
    elif compilation.weights:
        per_weight = f"{figures.loop * compilation.num_warps / compilation.weights:.3f}"
    if compilation.bytes_read or compilation.tensor_cores:
        limits = tuple(f"{100 * share:.0f} %" if share else "" for share in bounds(compilation, known, part))
    shared = f"{figures.shared / KIB:.0f} K" if figures.shared else "0"
    counts = (figures.registers, figures.spills, shared, figures.tensor, figures.wide_loads, figures.wide_copies, figures.loop)
    return "| " + " | ".join(map(str, (f"`{compilation.name}`", *counts, per_weight, whole, *limits))) + " |"


def read_committed() -> Table:
    if not COMMITTED.exists():
        return {}
    document = json.loads(COMMITTED.read_text())
    return {name: {t: Figures(**figures) for t, figures in row.items()} for name, row in document.items()}


def check(chosen: list[Compilation], table: Table) -> list[str]:
    """Every problem of every configuration, and figures of configurations that are no more."""
    committed = read_committed()
    found = [
        sentence
        for c in chosen
        for target, figures in table[c.name].items()
        for sentence in problems(c, target, figures, committed.get(c.name, {}).get(target))
    ]
    names = {c.name for c in chosen}
    return found + [
        f"{name}: in report.json, and shipped no more; run python kernels/report.py" for name in committed if name not in names
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with report.json instead of writing it")
    parser.add_argument("--only", default="", metavar="WORD", help="print the rows of configurations with this word; write nothing")
    arguments = parser.parse_args()
    chosen = [c for c in compilations() if arguments.only in c.name]
    table = tabulate(chosen)
    if arguments.only:
        print(render(chosen, table).removeprefix(HEAD))
        return 0
    if arguments.check:
        found = check(chosen, table)
        print("\n".join(found) or f"{len(chosen)} configurations, {sum(map(len, table.values()))} compilations: as in report.json")
        return 1 if found else 0
    REPORT.write_text(document(chosen, table))
    found = [sentence for c in chosen for t, f in table[c.name].items() for sentence in problems(c, t, f, f)]
    print("\n".join(found))
    COMMITTED.write_text(json.dumps({n: {t: asdict(f) for t, f in row.items()} for n, row in table.items()}, indent=1) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
