"""Who writes what a recipe asks for: one ArtifactWriter per variant that the base can have, and the reasons for the others."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from hubquant.artifact import Base
from hubquant.calibrate.source import text_name
from hubquant.errors import BadModel
from hubquant.formats.gguf.artifact import GgufArtifactWriter
from hubquant.formats.gguf.auto import AutoArtifactWriter
from hubquant.formats.gguf.converter import FOLDER, convert, converter
from hubquant.formats.gguf.imatrix import Imatrix
from hubquant.formats.gguf.metadata import Provenance, general
from hubquant.formats.gguf.mixtures import mixture
from hubquant.formats.gguf.reader import GgufSource
from hubquant.formats.gguf.skeleton import Matrices, Skeleton, SkeletonWriter
from hubquant.formats.packed import PackedWriter
from hubquant.formats.packedauto import PackedAutoWriter
from hubquant.formats.writer import ArtifactWriter
from hubquant.model.decoder import Decoder
from hubquant.recipe import Recipe, Variant, override, variant

CONVERTED = "converted.gguf.part"


def writers_of_folder(
    decoder: Decoder, model: Path, out: Path, recipe: Recipe, base: Base, quantized_by: str
) -> tuple[list[ArtifactWriter], list[str]]:
    """For a Hugging Face folder. Raises BadModel if no variant can be made."""
    shapes = decoder.shapes()
    linears = {n for n, shape in shapes.items() if len(shape) == 2 and n not in decoder.outside()}
    imatrix = _new_imatrix(recipe)
    provenance = Provenance(
        name=base.repo_id.rpartition("/")[2],
        repo_id=base.repo_id if base.revision else "",
        revision=base.revision,
        license=base.license,
        quantized_by=quantized_by,
    )
    converted = cache(partial(_converted, model, out))  # at the first need, once for all variants, whatever comes of it

    def packed(wanted: Variant) -> ArtifactWriter:
        options: dict[str, Any] = {
            "routers": decoder.routers(),
            "float32": decoder.float32(),
            "transposed": decoder.transposed,
            "stored": decoder.names.stored,
            "head": decoder.head_name(),
            "left_alone": decoder.left_alone(),
            "overrides": [override(text) for text in recipe.dynamic],
        }
        places = (wanted, out / wanted.folder, model, shapes, linears)
        if wanted.by_sensitivity:
            return PackedAutoWriter(*places, embedding=decoder.embedding_name(), **options)
        return PackedWriter(*places, **options)

    def make(wanted: Variant) -> ArtifactWriter:
        folder = out / wanted.folder
        if wanted.format != "gguf":
            return packed(wanted)
        if wanted.by_sensitivity:
            return AutoArtifactWriter(wanted, folder, model, shapes, provenance, imatrix, recipe.max_file_bytes)
        try:
            return GgufArtifactWriter(wanted, folder, model, shapes, provenance, imatrix, recipe.max_file_bytes)
        except BadModel as error:
            skeleton = converted()
            if isinstance(skeleton, BadModel):
                raise BadModel(f"{error}; {skeleton}") from None
        matrices, named = _mapped(skeleton, shapes), general(provenance, mixture(wanted.mixture), None, skeleton.n_parameters, 0)
        covered = {stored for linear in linears for stored, _, _ in matrices(linear)}
        return SkeletonWriter(
            wanted,
            folder,
            provenance.name,
            skeleton,
            imatrix,
            matrices=matrices,
            covered=covered,
            replaced=named,
            max_bytes=recipe.max_file_bytes,
        )

    return _made(recipe, make)


def _converted(model: Path, out: Path) -> Skeleton | BadModel:
    """What llama.cpp's converter makes of the model, or why there is nothing."""
    try:
        script = converter()
        if script is None:
            return BadModel(f"with {FOLDER} set to llama.cpp's source its converter is asked")
        return Skeleton(convert(model, out / CONVERTED, script))
    except BadModel as error:
        return error


def _mapped(skeleton: Skeleton, shapes: Mapping[str, tuple[int, ...]]) -> Matrices:
    return lambda name: skeleton.mapped(name, shapes[name][-1])


def writers_of_gguf(
    model: Path, weights: GgufSource | None, out: Path, recipe: Recipe, base: Base, given: Imatrix | None
) -> tuple[list[ArtifactWriter], list[str]]:
    """For a GGUF file. `weights`: if the pass will run over it; `given`: an importance matrix to use in place of the pass's own.

    Raises BadModel if no variant can be made.
    """
    skeleton = Skeleton(model)
    imatrix = given if given is not None or weights is None else _new_imatrix(recipe)
    matrices: Matrices | None = None
    covered = None
    if given is None and weights is not None:
        matrices = weights.matrices
        covered = {name for hf_name in weights.names() for name, _, _ in weights.matrices(hf_name) if name.startswith("blk.")}

    def make(wanted: Variant) -> ArtifactWriter:
        if wanted.format != "gguf":
            raise BadModel("a GGUF file makes GGUF variants only; name the model's folder or its repo for this one")
        if wanted.by_sensitivity:
            raise BadModel("a choice by sensitivity is made from a model's folder or its repo, not from a GGUF file")
        folder, limit = out / wanted.folder, recipe.max_file_bytes
        return SkeletonWriter(wanted, folder, base.repo_id, skeleton, imatrix, matrices=matrices, covered=covered, max_bytes=limit)

    return _made(recipe, make)


def discard_converted(out: Path) -> None:
    """Remove what llama.cpp's converter made on the way."""
    (out / CONVERTED).unlink(missing_ok=True)


def _new_imatrix(recipe: Recipe) -> Imatrix:
    calibration = recipe.calibration
    return Imatrix(text_name(calibration.source), calibration.windows, calibration.window)


def _made(recipe: Recipe, make: Callable[[Variant], ArtifactWriter]) -> tuple[list[ArtifactWriter], list[str]]:
    writers: list[ArtifactWriter] = []
    notes: list[str] = []
    for name in recipe.variants:
        try:
            writers.append(make(variant(name)))
        except BadModel as error:
            notes.append(f"{name} not made: {error}")
    if not writers:
        raise BadModel("; ".join(notes) or "the recipe names no variant")
    return writers, notes
