"""The straight line for one model on disk: one pass → read the bytes back and evaluate → gate. Publishing is the next line's."""

import platform
import resource
import shutil
import time
from importlib.metadata import version
from math import prod
from pathlib import Path

from torch import Tensor

from hubquant import __version__
from hubquant.artifact import Artifact, Base, Report
from hubquant.base import OpenBase, is_gguf, open_base
from hubquant.calibrate.source import read_text
from hubquant.calibrate.text import calibration_windows, tokenize
from hubquant.errors import BadModel, DiskFull, UnknownFamily, UsageError
from hubquant.evaluate.divergence import compare
from hubquant.evaluate.gate import judge
from hubquant.evaluate.perplexity import windows
from hubquant.formats.gguf.imatrix import Imatrix
from hubquant.formats.gguf.reader import GgufSource
from hubquant.formats.packed import PackedSource
from hubquant.model.checkpoint import TensorSource
from hubquant.onepass import finished, one_pass
from hubquant.progress import Progress, into_file
from hubquant.recipe import Recipe, variant
from hubquant.writers import discard_converted, writers_of_folder, writers_of_gguf

REPORT_FILE = "hubquant.json"
VERSIONED = ("torch", "transformers", "safetensors", "gguf")


def quantize(
    model: Path,
    out: Path,
    recipe: Recipe,
    base: Base,
    progress: Progress,
    quantized_by: str = "",
    imatrix: Path | None = None,
) -> Report:
    """Make every variant of the recipe from the model, into `out`; writes and returns the report, not yet measured.

    `model`: a folder, or a GGUF file in 16 or 32 bit, for which `imatrix` may name an importance matrix. A variant that this
    model cannot have is noted with the reason, and the others are made. Raises BadModel, DiskFull, UsageError.
    """
    started = time.monotonic()
    given = None if imatrix is None else Imatrix.read(imatrix)
    opened, unopened = _opened(model)
    tokens = _calibration_tokens(opened, recipe) if opened is not None and given is None else None
    tell = _prepare(out, progress)
    decoder = opened.decoder() if opened is not None else None
    if is_gguf(model):
        weights = opened.weights if opened is not None and given is None else None
        pass_over = weights if isinstance(weights, GgufSource) else None
        writers, notes = writers_of_gguf(model, pass_over, out, recipe, base, given)
    else:
        assert decoder is not None
        base = base.model_copy(update={"parameters": sum(prod(shape) for shape in decoder.shapes().values())})
        writers, notes = writers_of_folder(decoder, model, out, recipe, base, quantized_by)
    try:
        if decoder is not None and tokens is not None:
            every = recipe.calibration.all_experts
            artifacts, dropped, given_up = one_pass(
                decoder, tokens, writers, lambda done, total: tell("quantize", done, total), every
            )
            notes += given_up
        else:
            artifacts, dropped = finished(writers, notes), 0
    except OSError as error:
        raise _disk_error(error, out) from None
    finally:
        discard_converted(out)
    report = Report(
        hubquant_version=__version__,
        versions={"python": platform.python_version(), **{name: version(name) for name in VERSIONED}},
        base=base,
        recipe=recipe,
        artifacts=tuple(artifacts),
        calibration_tokens=0 if tokens is None else tokens.numel(),
        dropped_rows=dropped,
        seconds=time.monotonic() - started,
        peak_memory_bytes=_peak_memory(),
        notes=(*unopened, *notes),
    )
    return _write(report, out)


def evaluate(out: Path, model: Path, progress: Progress, protocols: tuple[str, ...] = (), text: str = "") -> Report:
    """Measure every artifact of `out` from its bytes against the base; writes and returns the report with its verdicts.

    `protocols` and `text` replace the recipe's. The first protocol decides the gate. What cannot be run here is not measured,
    with a note, and so passes no gate.
    """
    report = read_report(out)
    plan = report.recipe.evaluation
    opened, unopened = _opened(model)
    sources, unread = _sources(out, report)
    tell = into_file(out, progress)
    evaluations = []
    for name in protocols or plan.protocols:
        if opened is None or not sources:
            break
        scored = windows(name, text or plan.source, opened.tokenizer, plan.max_tokens)
        decoders = {name: opened.decoder(weights) for name, weights in sources.items()}
        evaluations += compare(opened.decoder(), decoders, scored, lambda done, total: tell("evaluate", done, total))
    verdicts = [v for e in evaluations[: len(sources)] for v in judge(e, report.recipe.limits)]
    notes = tuple(dict.fromkeys((*report.notes, *unopened, *unread)))
    update = {"evaluations": tuple(evaluations), "verdicts": tuple(verdicts), "notes": notes}
    return _write(report.model_copy(update=update), out)


def source(out: Path, artifact: Artifact) -> TensorSource:
    """The artifact's bytes on disk as dense weights. Raises BadModel if they are damaged, or of a family not known here."""
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


def _opened(model: Path) -> tuple[OpenBase | None, list[str]]:
    """The base, or why it cannot be run: a GGUF file can be encoded even so. Raises BadModel for a folder that cannot."""
    try:
        return open_base(model), []
    except BadModel as error:
        if not is_gguf(model):
            raise
        return None, [f"without calibration and not measured: {error}"]


def _sources(out: Path, report: Report) -> tuple[dict[str, TensorSource], list[str]]:
    """What of the report can be read back, by variant, and why the rest cannot: llama.cpp's converter knows more families."""
    sources: dict[str, TensorSource] = {}
    notes: list[str] = []
    for artifact in report.artifacts:
        try:
            sources[artifact.variant] = source(out, artifact)
        except UnknownFamily as error:
            notes.append(f"{artifact.variant} not measured: {error}")
    return sources, notes


def _calibration_tokens(opened: OpenBase, recipe: Recipe) -> Tensor:
    calibration = recipe.calibration
    tokens = tokenize(opened.tokenizer, read_text(calibration.source))
    return calibration_windows(tokens, calibration.windows, calibration.window)


def _prepare(out: Path, progress: Progress) -> Progress:
    """An empty output folder; what an interrupted run left there is replaced. Raises UsageError for a folder of someone else's."""
    if out.exists() and any(out.iterdir()) and not any((out / name).exists() for name in (REPORT_FILE, "progress.json")):
        raise UsageError(f"{out} is not empty and was not made by hubquant; name another folder with -o")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tell = into_file(out, progress)
    tell("quantize", 0, 1)
    return tell


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
