"""Writes the parts of the README that are made from code and measurements, between `<!-- name -->` and `<!-- end -->`.

python tests/benchmarks/readme.py            the tables, from the code and tests/benchmarks/results/*.json
python tests/benchmarks/readme.py --check    exit 1 if they are not what the file holds
python tests/benchmarks/readme.py --picture  run the demo and draw what it prints to .github/demo.svg
python tests/benchmarks/readme.py --keep DIR NAME   keep DIR/hubquant.json as results/NAME.json, without its tensors
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import architectures
import loading
from peers import tables
from peers.results import Results, models
from rich.console import Console

from hubquant import cli
from hubquant.artifact import Report
from hubquant.console import METRICS, metrics, protocol_line, size
from hubquant.recipe import BITS, DEFAULT_VARIANTS, GROUP_SIZES, VARIANTS, Variant, variant

sys.path.append(str(Path(__file__).parents[2] / "kernels"))
import measured

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results"
FAMILIES = RESULTS / "families" / "gguf.json"
TYPES = RESULTS / "ggml" / "types.json"
GENERATION = RESULTS / "cpu" / "llama-1.1b.json"
GPU_PASS, GPU_BUNDLED = RESULTS / "gpu" / "pass-7b.json", RESULTS / "gpu" / "bundled.json"
LEFT_OUT = ("called", "of issue")
# of what was measured on a GPU; kernels/REPORT.md has all of it
SHOWN = {
    "matmul_gptq": tuple(f"{m} x 4096 times 14336" for m in (1, 16, 64, 128)),
    "matmul_awq": tuple(f"{m} x 4096 times 14336" for m in (1, 64)),
    "ggml_matmul": tuple(f"Q4_K, {m} x 4096 times 14336" for m in (1, 8)),
    "ggml_dequantize": ("Q4_K, 4096 x 14336 to bfloat16",),
    "ggml_quantize": ("Q4_K, 4096 x 4096, bfloat16", "Q6_K, 4096 x 4096, bfloat16"),
    "accumulate_hessian": ("4096 tokens x 4096, bfloat16", "4096 tokens x 4096, float32"),
    "awq_losses": ("5 scales of 4096 x 4096",),
    "gptq_group": ("1 x 14336 x 128, symmetric",),
    "divergence": ("512 x 151936, float32",),
}
LOADS = {
    "gptq": "`from_pretrained` with `import hubquant`, GPTQModel, vLLM, SGLang",
    "awq": "`from_pretrained` with `import hubquant`, GPTQModel, vLLM, SGLang",
    "gguf": "llama.cpp, Ollama, LM Studio, `from_pretrained(gguf_file=…)`",
}


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def variants() -> str:
    def stored(v: Variant) -> str:
        if v.format == "gguf":
            return f"llama.cpp's {v.mixture}, importance from the pass"
        kind = "symmetric" if v.symmetric else "asymmetric"
        return f"{v.bits} bit, groups of {v.group_size}, {kind}"

    shown = [v for v in VARIANTS.values() if v.format != "gguf" or v.name in DEFAULT_VARIANTS]
    rows = [[f"`{v.name}`", stored(v), f"-{v.repo_suffix}", LOADS[v.format]] for v in shown]
    auto, bits = variant("gptq-auto@4.5bpw"), ", ".join(map(str, BITS))
    rows.append([f"`{auto.name}`", f"{bits} bit by measured sensitivity, within any budget", f"-{auto.repo_suffix}", LOADS["gptq"]])
    rows.append(["`gguf-auto@4.5bpw`", "types by measured sensitivity, within any budget", "-GGUF", "llama.cpp, Ollama, LM Studio"])
    others = ", ".join(f"`{v.name.removeprefix('gguf-')}`" for v in VARIANTS.values() if v.format == "gguf" and v not in shown)
    return (
        table(["variant", "stored as", "repo", "loads with"], rows)
        + f"\n\nBy their parts: `gptq-intB-gG` with B = {bits} and G = {', '.join(map(str, GROUP_SIZES))}, or `-row` for a whole "
        "row; after it any of `-asym`, `-static` or `-actorder`, `-head` (as `gptq-int3-g64-asym-head`); and `awq-int4-gG`. "
        "A budget may be a size: `gguf-auto@3.2GB`."
        f"\n\nAnd after `gguf-` every other mixture of llama.cpp, tensor for tensor: {others}."
    )


def commands() -> str:
    found = [(c.name or c.callback.__name__, c.callback) for c in cli.app.registered_commands if c.callback]
    return table(["command", "does"], [[f"`hubquant {name}`", (f.__doc__ or "").split("\n")[0]] for name, f in found])


def quality() -> str:
    parts = []
    for path in sorted(RESULTS.glob("*.json")):
        report = Report.model_validate_json(path.read_text())
        for protocol in dict.fromkeys(e.protocol for e in report.evaluations):
            rows = []
            for e in (e for e in report.evaluations if e.protocol == protocol):
                a = report.artifact(e.variant)
                rows.append([f"`{a.variant}`", size(a.size_bytes), f"{a.bits_per_weight:.2f}", *metrics(e), f"{a.seconds:.0f} s"])
            base = next(e.base_perplexity for e in report.evaluations if e.protocol == protocol)
            parts.append(
                f"**{path.stem}**, {report.base.parameters / 1e6:.1f} M parameters, base {size(report.base.size_bytes)}, "
                f"base perplexity {base:.3f}. One pass over {report.calibration_tokens:,} calibration tokens: "
                f"{report.seconds:.0f} s for all variants, peak memory {size(report.peak_memory_bytes)}.\n\n"
                + table(["variant", "size", "bits/weight", *METRICS, "solving"], rows)
                + f"\n\n{protocol_line(protocol)}. hubquant {report.hubquant_version}, torch {report.versions['torch']}."
            )
    return "\n\n".join(parts)


def families() -> str:
    kept = json.loads(FAMILIES.read_text())

    def row(name: str, found: dict[str, Any]) -> list[str]:
        kl, differences = found.get("logits_kl"), found.get("perplexity", {})
        worst = max(differences, key=lambda mixture: abs(differences[mixture]), default=None)
        return [
            name,
            {True: "yes", False: "no"}.get(found.get("loads"), "—"),
            found.get("tokenizer", "—"),
            "—" if kl is None else f"{kl:.1e}",
            "—" if worst is None else f"{100 * differences[worst]:+.2f} % ({worst})",
            {True: "yes", False: "no"}.get(found.get("from_pretrained"), "—"),
        ]

    headings = ["family", "loads", "same tokens", "KL of F16's logits", "worst perplexity", "`from_pretrained`"]
    mixtures = dict.fromkeys(m for found in kept["families"].values() for m in found.get("perplexity", {}))
    return (
        table(headings, [row(name, found) for name, found in kept["families"].items()])
        + f"\n\nSmall random models; llama.cpp of llama-cpp-python {kept['llama-cpp-python']}, "
        f"transformers {kept['transformers']}. KL: mean, against transformers, in mixtures "
        "of experts of the nearest 99 % of tokens (llama.cpp rounds a router's input to float16: one in a hundred may change its "
        "expert). "
        "Perplexity: llama.cpp's against our own of the same file, the worst of "
        f"{', '.join(mixtures)}. `from_pretrained`: transformers' own GGUF loader computes the same."
    )


def scoreboard() -> str:
    return "\n\n".join(tables.model_tables(Results(name), table) for name in models())


def types() -> str:
    kept = json.loads(TYPES.read_text())

    def cell(row: dict[str, Any], value: Callable[[dict[str, Any]], str]) -> str:
        return " / ".join(value(row[how]) if how in row else "—" for how in ("plain", "importance"))

    def times(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda found: f"{found[key] / found['ggml']:.2f}" if key in found else "—"

    modes = ("reference", "best")
    rows = [
        [
            name,
            f"{row['bits_per_weight']:.4g}",
            cell(row, lambda f: f"{100 * f['identical']:.5g} %"),
            cell(row, lambda f: f"{f['error']:.3f}"),
            cell(row, lambda f: f"{f['ggml']:.0f}"),
            *(cell(row, times(mode)) for mode in modes),
        ]
        for name, row in kept["types"].items()
        if row["ours"]
    ]
    libgguf = ", ".join(name for name, row in kept["types"].items() if not row["ours"])
    warm_up = max(row[how]["warm_up"] for row in kept["types"].values() if row["ours"] for how in ("plain", "importance"))
    memory = " and ".join(f"{name} takes {found['copy'] / found['reference']:.1f}" for name, found in kept["memory"].items())
    return (
        table(["type", "bits", "identical blocks", "error of best", "ggml, MB/s", *modes], rows)
        + f"\n\nWithout / with importance, against {kept['ggml']}'s ggml: {kept['weights']:,} float32 weights of the bundled "
        f"model, one thread, CPU time on a shared machine, torch {kept['torch']}. Reference mode gives ggml's bytes, best (the "
        "default) less Σ importance·error² in as many bytes; the last columns are their speeds, ggml's being 1, in C++ that "
        f"the machine's own compiler makes of a type when it is first wanted, in up to {warm_up:.0f} s, and that is kept "
        f"(HUBQUANT_NATIVE=0 does without; MXFP4 is in plain torch always). Of {kept['large']:,} weights, without importance, "
        f"{memory} times as long as a copy that reads and writes as many bytes. {libgguf} are ggml's own, from libgguf."
        + (f" {', '.join(kept['earlier'])} were timed in an earlier run than the others." if kept.get("earlier") else "")
    )


def generation() -> str:
    kept = json.loads(GENERATION.read_text())
    base = kept["weights"]["bfloat16"]
    rows = [
        [
            name,
            f"{w['tokens_per_second']:.1f}",
            f"{w['tokens_per_second'] / base['tokens_per_second']:.2f}",
            f"{w['tokens_per_cpu_second'] / base['tokens_per_cpu_second']:.2f}",
            size(w["tensor_bytes"]),
            f"{w['tensor_bytes'] / base['tensor_bytes']:.2f}",
            f"{w['touched_bytes'] / base['touched_bytes']:.2f}",
        ]
        for name, w in kept["weights"].items()
    ]
    headings = ["weights", "tokens/s", "of bfloat16's", "by CPU time", "tensors", "of bfloat16's", "of its touched memory"]
    return (
        f"{kept['parameters'] / 1e9:.1f} billion random weights of Llama's shape on one thread ({kept['instructions']}"
        f"{', AMX' if kept['amx'] else ''}), {kept['new_tokens']} tokens after a prompt of {kept['prompt']}, best of "
        f"{kept['best_of']}:\n\n" + table(headings, rows) + f"\n\ntorch {kept['torch']}, transformers {kept['transformers']}. "
        "Few rows are multiplied in bfloat16."
    )


def kernels_table() -> str:
    found = measured.read()
    rows = [
        [
            cell
            for heading, cell in zip(measured.HEADINGS, measured.row(found, case, name, {}), strict=True)
            if heading not in LEFT_OUT
        ]
        for kernel, shapes in SHOWN.items()
        for case in (found.case(kernel, shape) for shape in shapes)
        for name in case.own
    ]
    headings = [heading for heading in measured.HEADINGS if heading not in LEFT_OUT]
    return (
        table(headings, rows) + f"\n\n{found.device}, {found.versions}. Of the copy: the least bytes by the time, of "
        f"{found.copy / 1e12:.2f} TB/s; of the product: of {found.product / 1e12:.0f} Tflop/s in bfloat16, both measured beside. "
        "`gptq_group` was timed when its search multiplied with a whole metric, and one scale was rounded where seven are now. "
        "`hubquant kernels bench`; all of it, and how, in [kernels/REPORT.md](kernels/REPORT.md)."
    )


def gpu_pass() -> str:
    kept, small = json.loads(GPU_PASS.read_text()), json.loads(GPU_BUNDLED.read_text())
    layers, known = kept["layers"], sum(kept["stages"].values())
    stages = {**kept["stages"], "all else": kept["seconds"] - known}
    shown = sorted(stages.items(), key=lambda stage: -stage[1])
    rows = [[name, f"{seconds / layers:.2f} s", f"{100 * seconds / kept['seconds']:.0f} %"] for name, seconds in shown]
    made = small["mean_kl"]
    kl = "; ".join(f"`{v}` {made['made on the gpu'][v]:.6f} and {made['made on the cpu'][v]:.6f}" for v in made["made on the gpu"])
    return (
        f"The pass over {layers} layers of Llama 2 7B's shape (random weights, {kept['calibration_tokens']:,} tokens, all five "
        f"variants): {kept['seconds'] / layers:.1f} s a layer, {size(kept['peak_device_memory_bytes'])} of the GPU.\n\n"
        + table(["stage", "a layer", "share"], rows)
        + f"\n\n{kept['device']}, torch {kept['versions']['torch']}; `python tests/benchmarks/gpu_pass.py FOLDER`, measured before "
        "AWQ's search and the output errors took half as long (`awq_losses` above), and before there were "
        "GGUF's error feedback and coordinate descent. The bundled model made on it and on a CPU: mean "
        f"KL {kl}; each measured on both, with the same six digits."
    )


def model_types() -> str:
    return table(architectures.HEADINGS, architectures.rows()) + "\n\n" + architectures.note()


def loads() -> str:
    headings = ["format", "made by", "checkpoints", "difference", "also run", "CUDA, ROCm"]
    return table(headings, loading.rows()) + "\n\n" + loading.note()


PARTS = {
    "architectures": model_types,
    "variants": variants,
    "loading": loads,
    "commands": commands,
    "quality": quality,
    "scoreboard": scoreboard,
    "generation": generation,
    "kernels": kernels_table,
    "gpu-pass": gpu_pass,
    "families": families,
    "types": types,
}


def rendered(text: str) -> str:
    """The README with every generated part renewed."""
    for name, part in PARTS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no part <!-- {name} -->")
        text = pattern.sub(lambda m, part=part: m[1] + part() + "\n" + m[2], text)  # type: ignore[misc]
    return text


def picture() -> None:
    from hubquant.demo.line import Demo

    console = Console(record=True, width=140, file=StringIO(), highlight=False)  # no terminal: every state of a bar would be kept
    with tempfile.TemporaryDirectory() as folder:
        Demo(Path(folder) / "hubquant-demo", console).run()
        text = console.export_svg(title="hubquant demo").replace(str(Path(folder).resolve()), "~")
    (ROOT / ".github" / "demo.svg").write_text(text)


def keep(folder: Path, name: str) -> None:
    report = Report.read(folder)
    artifacts = tuple(a.model_copy(update={"tensors": ()}) for a in report.artifacts)
    base = report.base.model_copy(update={"repo_id": name})
    (RESULTS / f"{name}.json").write_text(
        report.model_copy(update={"artifacts": artifacts, "base": base}).model_dump_json(indent=1) + "\n"
    )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--picture"]:
        picture()
    elif arguments[:1] == ["--keep"]:
        keep(Path(arguments[1]), arguments[2])
    elif arguments == ["--check"]:
        if rendered(README.read_text()) != README.read_text():
            raise SystemExit("README.md is not what the code and the results say; run `make readme`")
    else:
        README.write_text(rendered(README.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
