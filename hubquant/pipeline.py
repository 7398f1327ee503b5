"""The straight line for one model on disk: one pass → read the bytes back and evaluate → gate. Publishing is the next line's."""

import platform
import resource
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import torch

from hubquant import __version__
from hubquant.artifact import Artifact, Base, Report
from hubquant.calibrate.source import read_text, text_name
from hubquant.calibrate.text import calibration_windows, load_tokenizer, tokenize
from hubquant.errors import BadModel, DiskFull, UsageError
from hubquant.evaluate.divergence import compare
from hubquant.evaluate.gate import judge
from hubquant.evaluate.perplexity import windows
from hubquant.formats.gguf.artifact import GgufArtifactWriter
from hubquant.formats.gguf.imatrix import Imatrix
from hubquant.formats.gguf.metadata import Provenance
from hubquant.formats.gguf.reader import GgufSource
from hubquant.formats.packed import PackedSource, PackedWriter
from hubquant.formats.writer import ArtifactWriter
from hubquant.model.checkpoint import Checkpoint, TensorSource
from hubquant.model.decoder import Decoder, read_config
from hubquant.onepass import one_pass
from hubquant.progress import Progress, into_file
from hubquant.recipe import Recipe, variant

REPORT_FILE = "hubquant.json"
VERSIONED = ("torch", "transformers", "safetensors", "gguf")


def quantize(model: Path, out: Path, recipe: Recipe, base: Base, progress: Progress, quantized_by: str = "") -> Report:
    """Make every variant of the recipe from the model folder, into `out`; writes and returns the report, not yet measured.

    A variant that this model cannot have is noted with the reason, and the others are made. Raises BadModel, DiskFull,
    UsageError.
    """
    started = time.monotonic()
    config = read_config(model)
    decoder = Decoder(config, Checkpoint(model), device())
    tokenizer = load_tokenizer(model)
    calibration = recipe.calibration
    tokens = tokenize(tokenizer, read_text(calibration.source))
    calibration_tokens = calibration_windows(tokens, calibration.windows, calibration.window)
    tell = _prepare(out, progress)
    shapes = decoder.shapes()
    base = base.model_copy(update={"parameters": sum(torch.Size(s).numel() for s in shapes.values())})
    writers, notes = _writers(decoder, model, out, recipe, base, quantized_by)
    try:
        artifacts, dropped = one_pass(
            decoder, calibration_tokens, writers, lambda done, total: tell("quantize", done, total), calibration.all_experts
        )
    except OSError as error:
        raise _disk_error(error, out) from None
    report = Report(
        hubquant_version=__version__,
        versions={"python": platform.python_version(), **{name: version(name) for name in VERSIONED}},
        base=base,
        recipe=recipe,
        artifacts=tuple(artifacts),
        calibration_tokens=calibration_tokens.numel(),
        dropped_rows=dropped,
        seconds=time.monotonic() - started,
        peak_memory_bytes=_peak_memory(),
        notes=tuple(notes),
    )
    return _write(report, out)


def evaluate(out: Path, model: Path, progress: Progress, protocols: tuple[str, ...] = (), text: str = "") -> Report:
    """Measure every artifact of `out` from its bytes against the base; writes and returns the report with its verdicts.

    `protocols` and `text` replace the recipe's. The first protocol decides the gate.
    """
    report = read_report(out)
    plan = report.recipe.evaluation
    tokenizer = load_tokenizer(model)
    config = read_config(model)
    base = Decoder(config, Checkpoint(model), device())
    tell = into_file(out, progress)
    evaluations = []
    for name in protocols or plan.protocols:
        scored = windows(name, text or plan.source, tokenizer, plan.max_tokens)
        decoders = {a.variant: Decoder(config, source(out, a), device()) for a in report.artifacts}
        evaluations += compare(base, decoders, scored, lambda done, total: tell("evaluate", done, total))
    deciding = evaluations[: len(report.artifacts)]
    verdicts = [v for e in deciding for v in judge(e, report.recipe.limits)]
    return _write(report.model_copy(update={"evaluations": tuple(evaluations), "verdicts": tuple(verdicts)}), out)


def source(out: Path, artifact: Artifact) -> TensorSource:
    """The artifact's bytes on disk as dense weights."""
    folder = out / artifact.folder
    if variant(artifact.variant).format == "gguf":
        return GgufSource(folder / artifact.main_file)
    return PackedSource(folder)


def read_report(out: Path) -> Report:
    """Raises UsageError if the folder is not one that `quantize` wrote."""
    try:
        return Report.read(out)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{out} holds no readable {REPORT_FILE}; is it an output folder of `hubquant quantize`? ({error})"
        ) from None


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _prepare(out: Path, progress: Progress) -> Progress:
    """An empty output folder; what an interrupted run left there is replaced. Raises UsageError for a folder of someone else's."""
    if out.exists() and any(out.iterdir()) and not any((out / name).exists() for name in (REPORT_FILE, "progress.json")):
        raise UsageError(f"{out} is not empty and was not made by hubquant; name another folder with -o")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tell = into_file(out, progress)
    tell("quantize", 0, 1)
    return tell


def _writers(
    decoder: Decoder, model: Path, out: Path, recipe: Recipe, base: Base, quantized_by: str
) -> tuple[list[ArtifactWriter], list[str]]:
    shapes = decoder.shapes()
    linears = {n for n, shape in shapes.items() if len(shape) == 2 and n not in decoder.outside()}
    calibration = recipe.calibration
    imatrix = Imatrix(text_name(calibration.source), calibration.windows, calibration.window)
    provenance = Provenance(
        name=base.repo_id.rpartition("/")[2],
        repo_id=base.repo_id if base.revision else "",
        revision=base.revision,
        license=base.license,
        quantized_by=quantized_by,
    )
    writers: list[ArtifactWriter] = []
    notes: list[str] = []
    for name in recipe.variants:
        wanted = variant(name)
        folder = out / wanted.folder
        try:
            if wanted.format == "gguf":
                writers.append(GgufArtifactWriter(wanted, folder, model, shapes, provenance, imatrix))
            else:
                writers.append(
                    PackedWriter(
                        wanted,
                        folder,
                        model,
                        shapes,
                        linears,
                        routers=decoder.routers(),
                        float32=decoder.buffers,
                        transposed=decoder.transposed,
                        stored=decoder.names.stored,
                    )
                )
        except BadModel as error:
            notes.append(f"{name} not made: {error}")
    if not writers:
        raise BadModel("; ".join(notes) or "the recipe names no variant")
    return writers, notes


def _write(report: Report, out: Path) -> Report:
    partial = out / f"{REPORT_FILE}.part"
    partial.write_text(report.model_dump_json(indent=2) + "\n")
    partial.replace(out / REPORT_FILE)
    return report


def _disk_error(error: OSError, out: Path) -> Exception:
    if error.errno == 28:  # ENOSPC
        free = shutil.disk_usage(out.parent).free
        return DiskFull(f"the disk of {out} is full ({free / 1e9:.1f} GB free); make room or name another folder with -o")
    return error


def _peak_memory() -> int:
    """Largest resident set of this process so far, in bytes (ru_maxrss counts kB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
