"""The tools and what each makes. A tool is a row of TOOLS: its environment, its variants, and the function that makes one."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hubquant import recipe
from hubquant.artifact import Report
from hubquant.errors import UsageError
from peers import environments
from peers.calibration import Calibration, write
from peers.results import Step

HERE = Path(__file__).parent
GGUF = (
    "gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q5_0", "gguf-q4_k_m", "gguf-q4_k_s", "gguf-iq4_nl", "gguf-iq4_xs", "gguf-q4_0",
    "gguf-q3_k_m", "gguf-iq3_m", "gguf-iq3_xxs", "gguf-q2_k", "gguf-iq2_m",
)  # fmt: skip
PACKED = ("gptq-int4-g128", "gptq-int3-g128", "awq-int4-g128")
SAID = 240  # characters of its log that a failure quotes


class Failed(Exception):
    """A step of a tool ended with an error; says the last lines of its log."""


@dataclass(frozen=True)
class Job:
    """One model for one tool: where it works, on what it calibrates, with how many threads; all the variants that are wanted of it
    (`batch`), which a tool may make together unless each is to be made `alone`."""

    model: Path
    calibration: Calibration
    folder: Path
    threads: int
    iterations: int
    batch: tuple[str, ...] = ()
    alone: bool = False
    again: bool = False

    def run(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> Step:
        """Run one process of the tool and measure it; its output goes to `name`.log. Raises Failed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{name}.log"
        count = str(self.threads)
        threads = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        measure = [sys.executable, str(HERE / "measure.py"), str(log), *command]
        whole = {**os.environ, **threads, **offline, **(environment or {})}
        # in its folder: GPTQModel writes logs/ where it is started
        done = subprocess.run(measure, check=True, capture_output=True, text=True, env=whole, cwd=self.folder)
        used = json.loads(done.stdout)
        if used.pop("exit_code"):
            raise Failed(_last_words(log))
        return Step(name, **used)

    def once(self, name: str, made: Path, command: list[str], shared: bool = True, told: str = "") -> Step:
        """A step that is run unless what it makes is there, made by the same command from the same tokens: one that serves every
        variant, or one whose file was made and not measured before a run was stopped. `told`: what the command reads in a file."""
        kept = made.with_name(made.name + ".step.json")
        asked = [*command, told, self.calibration.about.get("excerpt_sha256", "")]
        if made.exists() and kept.exists() and not (self.again and not shared):
            found = json.loads(kept.read_text())
            if found.pop("asked") == asked:
                return Step(**found)
        remove(made)
        step = replace(self.run(name, command), shared=shared)
        write(kept, json.dumps(asdict(step) | {"asked": asked}))
        return step


@dataclass(frozen=True)
class Made:
    """What a tool made of one variant: the GGUF file or model folder, all that it wrote, its steps, the command of a person."""

    path: Path
    wrote: Path
    steps: tuple[Step, ...]
    command: str


@dataclass(frozen=True)
class Tool:
    environment: str
    variants: tuple[str, ...]
    make: Callable[[Job, str], Made]
    settings: str = ""
    together: bool = False  # its variants are cheap to make or made at once: they are measured in one go


def plan(variant: str) -> dict[str, Any]:
    """What a variant's name says: format, and bits and group size, or llama.cpp's mixture. Raises ValueError."""
    if variant.startswith("gguf-"):
        return {"format": "gguf", "mixture": variant.removeprefix("gguf-").upper()}
    found = re.fullmatch(r"(gptq|awq)-int(\d)-g(\d+)", variant)
    if found is None:
        raise ValueError(f"no tool is told how to make {variant!r}; it is gptq-int4-g128, awq-int4-g128, gguf-q4_k_m or alike")
    return {"format": found[1], "bits": int(found[2]), "group_size": int(found[3]), "symmetric": found[1] == "gptq"}


def driven(script: str, algorithm: str = "", iterations: int | None = None) -> Callable[[Job, str], Made]:
    """A tool that is a Python library: `script` runs it in its environment, told by a JSON file."""

    def make(job: Job, variant: str) -> Made:
        out = job.folder / variant
        steps = job.iterations if iterations is None else iterations
        asked = {**plan(variant), "algorithm": algorithm, "iterations": steps}
        asked |= {"model": str(job.model), "ids": str(job.calibration.ids), "out": str(out)}
        told = job.folder / f"{variant}.job.json"
        job.folder.mkdir(parents=True, exist_ok=True)
        write(told, json.dumps(asked, indent=1))
        environment = script.removeprefix("run_").removesuffix(".py")
        command = [str(environments.python(environment)), str(HERE / "drivers" / script), str(told)]
        step = job.once(variant, out, command, shared=False, told=told.read_text())
        return Made(_artifact(out), out, (step,), f"peers/drivers/{script} {json.dumps(plan(variant))}")

    return make


def llama_cpp(job: Job, variant: str) -> Made:
    """convert_hf_to_gguf, llama-imatrix over the same tokens, llama-quantize with it."""
    base, matrix, out = (job.folder / name for name in ("base-f32.gguf", "imatrix.gguf", f"{variant}.gguf"))
    convert = [str(environments.python("llamacpp")), str(HERE / "drivers/run_llamacpp.py"), str(environments.llama_source())]
    converted = job.once("convert", base, [*convert, str(job.model), "--outtype", "f32", "--outfile", str(base)])
    check_tokens(job, base)
    threads = ["-t", str(job.threads)]
    imatrix = [
        str(environments.llama_program("llama-imatrix")),
        "-m",
        str(base),
        "-f",
        str(job.calibration.text),
        "-o",
        str(matrix),
    ]
    imatrix += ["-c", str(job.calibration.window), "-b", str(job.calibration.window), "--no-ppl", *threads]
    collected = job.once("imatrix", matrix, imatrix)
    asked = ["--imatrix", str(matrix), str(base), str(out), plan(variant)["mixture"], str(job.threads)]
    made = job.run(variant, [str(environments.llama_program("llama-quantize")), *asked])
    short = f"llama-quantize --imatrix {matrix.name} {base.name} {out.name} {plan(variant)['mixture']}"
    return Made(out, out, (converted, collected, made), short)


def check_tokens(job: Job, base: Path) -> None:
    """llama.cpp must read the calibration text as the same token ids. Raises Failed at the first that differs."""
    ask = [str(environments.llama_program("llama-tokenize")), "-m", str(base), "-f", str(job.calibration.text)]
    ask += ["--ids", "--no-escape", "--no-parse-special", "--log-disable"]
    told = subprocess.run(ask, check=True, capture_output=True, text=True).stdout
    found = json.loads(told[told.index("[") :])
    wanted = [token for window in json.loads(job.calibration.ids.read_text()) for token in window]
    if found != wanted:
        place = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
        raise Failed(f"llama.cpp reads other tokens of the calibration text, from token {place} of {len(wanted)} on")


def hubquant(job: Job, variant: str) -> Made:
    """The command line. One run makes all the variants of the batch, as its design is, or, with `alone`, this one."""
    made = (variant,) if job.alone else tuple(v for v in job.batch if _known(v))
    if not _known(variant):
        raise Failed(f"hubquant has no variant {variant}")
    out = job.folder / (variant if job.alone else "pass")
    kept = job.folder / f"{out.name}.step.json"
    c = job.calibration
    options = ["--calibration", str(c.text), "--windows", str(c.windows), "--window", str(c.window), "--no-evaluate"]
    options += [word for v in made for word in ("-v", v)]
    if variant == made[0]:
        remove(out)
        remove(kept)
        step = job.run(out.name, [sys.executable, "-m", "hubquant", "quantize", str(job.model), "-o", str(out), *options])
        write(kept, json.dumps(asdict(replace(step, name=f"one pass for {len(made)}", shared=len(made) > 1))))
    if not kept.exists():
        raise Failed(_last_words(job.folder / f"{out.name}.log"))
    found = next((a for a in Report.read(out).artifacts if a.variant == variant), None)
    if found is None:
        raise Failed("; ".join(note for note in Report.read(out).notes if note.startswith(variant)) or "it was given up")
    path = found.path(out)
    return Made(path, path, (Step(**json.loads(kept.read_text())),), f"hubquant quantize {job.model.name} -o out -v {variant}")


def _known(name: str) -> bool:
    try:
        return bool(recipe.variant(name))
    except UsageError:
        return False


# In the order of what they cost, so that a table grows quickly
TOOLS: dict[str, Tool] = {
    "llama.cpp": Tool("llamacpp", GGUF, llama_cpp, together=True),
    "auto-round RTN": Tool("autoround", PACKED, driven("run_autoround.py", iterations=0)),
    "auto-round AWQ": Tool("autoround", ("awq-int4-g128",), driven("run_autoround.py", "awq")),
    "GPTQModel": Tool("gptqmodel", PACKED, driven("run_gptqmodel.py")),
    "llm-compressor": Tool("llmcompressor", PACKED, driven("run_llmcompressor.py")),
    "auto-round": Tool("autoround", PACKED, driven("run_autoround.py"), "{iterations} iterations"),
    environments.HUBQUANT: Tool(environments.HUBQUANT, (*PACKED, *GGUF), hubquant, together=True),
}


def remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _artifact(out: Path) -> Path:
    """The GGUF file in a tool's output folder, or the folder below it that holds a model. Raises Failed if there is neither."""
    files = [p for p in sorted(out.rglob("*.gguf")) if not p.name.startswith(("imatrix", "mmproj"))]
    folders = sorted({p.parent for p in out.rglob("*.safetensors")})
    if not files and not folders:
        raise Failed(f"nothing was written to {out.name}")
    return (files or folders)[0]


def _last_words(log: Path) -> str:
    """The last line of the log that names an error, or its last line, without folders of this machine."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no output"]
    said = next((line for line in reversed(lines) if re.match(r"[\w.]*Error\b", line)), lines[-1])
    return re.sub(r"(?<!\w)(?:/[\w.+-]+)+/", "…/", said)[:SAID]
