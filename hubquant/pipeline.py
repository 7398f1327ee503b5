"""The straight line for one model on disk: one pass → read the bytes back and evaluate → gate. Publishing is the next line's."""

import hashlib
import json
import platform
import shutil
import time
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from hubquant import __version__, memory, needs
from hubquant.artifact import Artifact, Base, Report, file_sha256
from hubquant.base import CPU, OpenBase, describe_device, device_named, is_gguf, open_base
from hubquant.calibrate.source import read_text
from hubquant.calibrate.text import calibration_windows, tokenize
from hubquant.errors import BadModel, UnknownFamily, UsageError
from hubquant.evaluate.divergence import compare
from hubquant.evaluate.gate import judge
from hubquant.evaluate.perplexity import windows
from hubquant.formats.gguf.imatrix import Imatrix
from hubquant.formats.gguf.reader import GgufSource
from hubquant.formats.packedsource import PackedSource
from hubquant.formats.writer import ArtifactWriter, trials_folder
from hubquant.model.checkpoint import TensorSource
from hubquant.model.decoder import Decoder
from hubquant.onepass import finish, one_pass
from hubquant.output import REPORT_FILE, alone_in, clear, disk_error, open_bookmark, write_report
from hubquant.progress import Progress, into_file
from hubquant.recipe import Recipe, variant
from hubquant.refine import refine_all
from hubquant.writers import discard_converted, writers_of_folder, writers_of_gguf

VERSIONED = ("torch", "transformers", "safetensors", "gguf")


def quantize(
    model: Path,
    out: Path,
    recipe: Recipe,
    base: Base,
    progress: Progress,
    quantized_by: str = "",
    imatrix: Path | None = None,
    anyway: bool = False,
    device: str = "",
) -> Report:
    """Make every variant of the recipe from the model, into `out`; writes and returns the report, not yet measured.

    `model`: a folder, or a GGUF file in 16 or 32 bit, for which `imatrix` may name an importance matrix. `device`: where layers
    are run and variants solved; a GPU if there is one. A variant that this model cannot have is noted with the reason, and the
    others are made. What a killed process left of the same pass is gone on with. Raises BadModel, FolderBusy, UsageError, and
    before it begins, unless `anyway`, MemoryShort and DiskFull.
    """
    started = time.monotonic()
    where = device_named(device)
    given = None if imatrix is None else Imatrix.read(imatrix)
    opened, unopened = _opened(model, where)
    tokens = _calibration_tokens(opened, recipe) if opened is not None and given is None else None
    decoder = opened.decoder() if opened is not None else None
    if decoder is not None and not is_gguf(model):
        base = base.model_copy(update={"parameters": sum(prod(shape) for shape in decoder.shapes().values())})
    with alone_in(out):
        bookmark = open_bookmark(out, _key(base, recipe, quantized_by, imatrix, where))
        if not bookmark.begun:
            if opened is not None and tokens is not None and not anyway:
                _check_needs(opened, recipe, out)
            clear(out, bookmark)
        at, tell = bookmark.standing, into_file(out, progress)
        for name in at.finished:  # after which the process may have been killed before it removed what it had chosen from
            shutil.rmtree(trials_folder(out / variant(name).folder, variant(name)), ignore_errors=True)
        tell("quantize", 0, 1)
        started -= at.seconds
        left = recipe.model_copy(update={"variants": tuple(n for n in recipe.variants if n not in {*at.finished, *at.given_up})})
        try:
            writers, notes = _writers(model, opened, decoder, out, left, base, quantized_by, given)
        except BadModel as error:
            if not at.finished:  # before a kill
                raise
            writers, notes = [], [str(error)]

        def cost() -> None:
            on_device = torch.cuda.max_memory_allocated(where) if where.type == "cuda" else 0
            at.seconds = time.monotonic() - started
            at.peak_memory_bytes = max(at.peak_memory_bytes, memory.peak())
            at.peak_device_memory_bytes = max(at.peak_device_memory_bytes, on_device)

        def done(stage: str, n: int, total: int) -> None:
            cost()
            tell(stage, n, total)

        try:
            if decoder is not None and tokens is not None:
                one_pass(decoder, tokens, writers, partial(done, "quantize"), bookmark, recipe.calibration.all_experts)
                if opened is not None and recipe.refine:
                    notes += refine_all(opened, decoder, out, tokens, recipe.refine, bookmark, partial(done, "refine"))
            else:
                finish(writers, bookmark)
                notes += ["scales not refined: without calibration there is nothing to learn from"] if recipe.refine else []
        except OSError as error:
            raise disk_error(error, out) from None
        except BadModel:
            bookmark.remove()
            raise
        finally:
            discard_converted(out)
        cost()
        report = Report(
            hubquant_version=__version__,
            versions=_versions(),
            base=base,
            recipe=recipe,
            artifacts=tuple(at.finished.values()),
            calibration_tokens=0 if tokens is None else tokens.numel(),
            dropped_rows=at.dropped_rows,
            seconds=at.seconds,
            peak_memory_bytes=at.peak_memory_bytes,
            device=describe_device(where),
            peak_device_memory_bytes=at.peak_device_memory_bytes,
            notes=(*unopened, *notes, *at.given_up.values(), *_dropped(at.dropped_rows)),
        )
        write_report(report, out)
        bookmark.remove()
    return report


def evaluate(
    out: Path,
    model: Path,
    progress: Progress,
    protocols: tuple[str, ...] = (),
    text: str = "",
    max_tokens: int | None = None,
    device: str = "",
) -> Report:
    """Measure every artifact of `out` from its bytes against the base; writes and returns the report with its verdicts.

    `protocols`, `text` and `max_tokens` replace the recipe's. The first protocol decides the gate. What cannot be run here is not
    measured, with a note, and so passes no gate. It is run in float32 on every `device`, so that figures of different ones compare.
    """
    report = read_report(out)
    plan = report.recipe.evaluation
    where = device_named(device)
    opened, unopened = _opened(model, where)
    sources, unread = _sources(out, report, where)
    evaluations = []
    with alone_in(out):
        tell = into_file(out, progress)
        for name in protocols or plan.protocols:
            if opened is None or not sources:
                break
            scored = windows(name, text or plan.source, opened.tokenizer, max_tokens or plan.max_tokens)
            decoders = {name: opened.decoder(weights, torch.float32) for name, weights in sources.items()}
            told = partial(tell, "evaluate")
            evaluations += compare(opened.decoder(dtype=torch.float32), decoders, scored, told, out / "hidden.part")
        verdicts = [v for e in evaluations[: len(sources)] for v in judge(e, report.variant(e.variant).bits, report.recipe.limits)]
        notes = tuple(dict.fromkeys((*report.notes, *unopened, *unread)))
        update = {"evaluations": tuple(evaluations), "verdicts": tuple(verdicts), "notes": notes}
        return write_report(report.model_copy(update=update), out)


def source(out: Path, artifact: Artifact, device: torch.device = CPU) -> TensorSource:
    """The artifact's bytes on disk as dense weights, decoded on `device`.

    Raises BadModel if they are damaged, or of a family not known here.
    """
    path = artifact.path(out)
    return GgufSource(path, device) if is_gguf(path) else PackedSource(path, device)


def read_report(out: Path) -> Report:
    """Raises UsageError if the folder is not one that `quantize` wrote."""
    try:
        return Report.read(out)
    except FileNotFoundError:
        raise UsageError(f"{out} holds no {REPORT_FILE}; is it an output folder of `hubquant quantize`?") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{out / REPORT_FILE} cannot be read: {error}") from None


def _opened(model: Path, device: torch.device) -> tuple[OpenBase | None, list[str]]:
    """The base, or why it cannot be run: a GGUF file can be encoded even so. Raises BadModel for a folder that cannot."""
    try:
        return open_base(model, device), []
    except BadModel as error:
        if not is_gguf(model):
            raise
        return None, [f"without calibration and not measured: {error}"]


def _sources(out: Path, report: Report, device: torch.device) -> tuple[dict[str, TensorSource], list[str]]:
    """What of the report can be read back, by variant, and why the rest cannot: llama.cpp's converter knows more families."""
    sources: dict[str, TensorSource] = {}
    notes: list[str] = []
    for artifact in report.artifacts:
        try:
            sources[artifact.variant] = source(out, artifact, device)
        except UnknownFamily as error:
            notes.append(f"{artifact.variant} not measured: {error}")
    return sources, notes


def _calibration_tokens(opened: OpenBase, recipe: Recipe) -> Tensor:
    """Raises UsageError for a text that is too short; windows may share tokens unless some are to be held out from the others."""
    calibration = recipe.calibration
    tokens = tokenize(opened.tokenizer, read_text(calibration.source))
    if recipe.refine and len(tokens) < (asked := calibration.windows * calibration.window):
        raise UsageError(
            f"to refine, windows must not share tokens: {calibration.source} has {len(tokens):,}, and {calibration.windows} "
            f"windows of {calibration.window} are {asked:,}; ask for fewer, or name a longer text"
        )
    return calibration_windows(tokens, calibration.windows, calibration.window)


def _writers(
    model: Path,
    opened: OpenBase | None,
    decoder: Decoder | None,
    out: Path,
    recipe: Recipe,
    base: Base,
    quantized_by: str,
    given: Imatrix | None,
) -> tuple[list[ArtifactWriter], list[str]]:
    """Of the recipe's variants, and why those that have none are not made."""
    if not recipe.variants:  # all were finished when the process was killed
        return [], []
    if not is_gguf(model):
        assert decoder is not None
        return writers_of_folder(decoder, model, out, recipe, base, quantized_by)
    weights = opened.weights if opened is not None and given is None else None
    return writers_of_gguf(model, weights if isinstance(weights, GgufSource) else None, out, recipe, base, given)


def _check_needs(opened: OpenBase, recipe: Recipe, out: Path) -> None:
    """Raises MemoryShort or DiskFull. A model that does not run on the zeros that stand for its weights is let pass."""
    try:
        wanted = needs.needs(needs.shape_of(opened.config), recipe, opened.device)
    except BadModel:
        return
    needs.check(wanted, out)


def _key(base: Base, recipe: Recipe, quantized_by: str, imatrix: Path | None, where: torch.device) -> str:
    """The hash of everything that decides the bytes of a pass; sums of floats are those of a number of threads and a processor."""
    parts = {
        "base": base.model_dump(),
        "recipe": recipe.sha256,
        "quantized_by": quantized_by,
        "imatrix": file_sha256(imatrix) if imatrix is not None else "",
        "hubquant": __version__,
        "versions": _versions(),
        "device": [describe_device(where), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _dropped(rows: int) -> tuple[str, ...]:
    return (f"{rows:,} rows of activations overflowed or were not finite; they are not in the calibration",) if rows else ()


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}}
