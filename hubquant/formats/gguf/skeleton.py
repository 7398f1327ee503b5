"""A GGUF file in 16 or 32 bit whose structure is taken over: every key, every tensor's name and shape; only types change.

For files that somebody else converted (`hubquant quantize some.gguf`), and for model families that llama.cpp's converter
knows and hubquant does not.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from hubquant.artifact import Artifact, TensorRecord, file_sha256
from hubquant.errors import BadModel
from hubquant.formats.gguf.file import GgufFile, TensorPlan
from hubquant.formats.gguf.header import GgufHeader
from hubquant.formats.gguf.imatrix import IMATRIX_FILE, Imatrix, ImatrixInfo
from hubquant.formats.gguf.metadata import Typed, Value, quantization
from hubquant.formats.gguf.mixtures import Dimensions, mixture, tensor_types
from hubquant.formats.gguf.tensornames import TensorNames
from hubquant.formats.writer import State
from hubquant.model.layer import Layer
from hubquant.quantize.compensation import Factor
from hubquant.quantize.feedback import encode_with_feedback
from hubquant.quantize.ggml import GGML_TYPES, NEEDS_IMPORTANCE, encode
from hubquant.recipe import MAX_FILE_BYTES, Variant

PLAIN = ("F32", "F16", "BF16")
# keys of the file that was read that are not true of the one that is written
_REPLACED = (
    *("general.file_type", "general.quantization_version", "general.alignment"),
    *("split.", "quantize.imatrix.", "hubquant."),
)
ROWS_BYTES = 1 << 28  # float32 rows that are held at a time

# Hugging Face tensor name → which matrices of which GGUF tensors read its input: name, matrices of the stack, how many it has
Matrices = Callable[[str], list[tuple[str, range, int]]]


class Skeleton:
    """Raises BadModel if the file is malformed, or already quantized: quantizing twice loses twice."""

    def __init__(self, path: Path) -> None:
        self.header = GgufHeader.read(path)
        self.architecture = str(self.header.values.get("general.architecture", ""))
        for name, tensor in self.header.tensors.items():
            if tensor.kind.name not in PLAIN:
                raise BadModel(f"{path.name}: tensor {name} is already {tensor.kind.name}; name a file in F16, BF16 or F32")
        self.shapes = {name: tensor.shape for name, tensor in self.header.tensors.items()}
        self.n_parameters = sum(prod(shape) for shape in self.shapes.values())

    def types(self, mixture_name: str, has_imatrix: bool) -> dict[str, str]:
        """GGUF tensor name → ggml type; a one-dimensional tensor keeps what it had."""
        chosen = tensor_types(mixture_name, self.shapes, self._dimensions(), has_imatrix)
        return {n: kind if len(self.shapes[n]) > 1 else self.header.tensors[n].kind.name for n, kind in chosen.items()}

    def values(self, replaced: Mapping[str, Value]) -> dict[str, Value | Typed]:
        """The keys of the file, but for what is `replaced` or true of that file alone."""
        kept = {
            key: Typed(value, *self.header.kinds[key])
            for key, value in self.header.values.items()
            if key not in replaced and not key.startswith(_REPLACED)
        }
        return {**kept, **replaced}

    def mapped(self, hf_name: str, width: int) -> list[tuple[str, range, int]]:
        """Where gguf's own map of names puts a Hugging Face matrix of rows of `width`; nothing if it knows none, or the file's is
        of another width."""
        stem = self._names.get_name(hf_name.removesuffix(".weight")) if self._names else None
        name = f"{stem}.weight"
        shape = self.shapes.get(name, ())
        return [(name, range(1), 1)] if len(shape) == 2 and shape[1] == width else []

    @cached_property
    def _names(self) -> TensorNames | None:
        arch = next((a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture), None)
        return None if arch is None else TensorNames(arch, self._number("block_count"))

    def _dimensions(self) -> Dimensions:
        heads = self._number("attention.head_count")
        return Dimensions(
            self.architecture,
            self._number("block_count"),
            heads,
            self._number("attention.head_count_kv", heads),
            self._number("expert_count"),
        )

    def _number(self, key: str, default: int = 0) -> int:
        """A hyperparameter; of one per layer the largest."""
        value: Any = self.header.values.get(f"{self.architecture}.{key}", default)
        found = max(value, default=default) if isinstance(value, list) else value
        return found if isinstance(found, int) and not isinstance(found, bool) else default


class SkeletonWriter:
    """Writes FOLDER/NAME-MIXTURE.gguf, or its shards, from a skeleton, when the pass over the layers is done.

    The pass fills `imatrix` where `matrices` says which GGUF tensors a layer's linears are; one that is `given` stays as it is.
    `replaced`: keys that are written in place of the skeleton's. Raises BadModel if the mixture has types that need an
    importance matrix, and a tensor will have none.
    """

    packs_head = False

    def __init__(
        self,
        variant: Variant,
        folder: Path,
        name: str,
        skeleton: Skeleton,
        imatrix: Imatrix | None,
        *,
        matrices: Matrices | None = None,
        covered: set[str] | None = None,
        replaced: Mapping[str, Value] | None = None,
        max_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        """`covered`: GGUF names of the tensors that the pass will reach; None for those that `imatrix` has."""
        self.variant, self.folder, self.skeleton, self.imatrix, self._matrices = variant, folder, skeleton, imatrix, matrices
        covered = set(imatrix.in_sum2) if covered is None and imatrix is not None else covered or set()
        self._types = skeleton.types(variant.mixture, imatrix is not None)
        for tensor, kind in self._types.items():
            if kind in NEEDS_IMPORTANCE and tensor not in covered:
                raise BadModel(f"tensor {tensor} would be {kind}, which needs an importance matrix; take a mixture of more bits")
        info = None
        if imatrix is not None:
            info = ImatrixInfo(file=IMATRIX_FILE, dataset=imatrix.dataset, chunks=imatrix.chunks)
        made = quantization(mixture(variant.mixture), info, len(covered))
        folder.mkdir(parents=True, exist_ok=True)
        plans = {tensor: TensorPlan(self._types[tensor], shape) for tensor, shape in skeleton.shapes.items()}
        values = skeleton.values({**(replaced or {}), **made})
        self._written: set[tuple[str, int]] = set()
        self._file = GgufFile(folder / f"{name}-{variant.mixture}.gguf", skeleton.architecture, values, plans, max_bytes)

    def add_outside(self, name: str, tensor: Tensor) -> None:
        """Nothing: the skeleton has it."""

    def add_layer(self, layer: Layer) -> None:
        if self._matrices is None or self.imatrix is None:
            return
        for name in layer.tensors:
            statistics = layer.statistics_of(name)
            for stored, matrices, of in self._matrices(layer.prefix + name) if statistics is not None else ():
                assert statistics is not None
                self.imatrix.add_observed(stored, statistics, matrices, of)
                if statistics.factor is not None:
                    self._write_with_feedback(stored, matrices, statistics.factor)

    def _write_with_feedback(self, name: str, matrices: range, factor: Factor) -> None:
        """A matrix that several linears make up, as q, k and v may, is written with the first of them."""
        shape, kind = self.skeleton.shapes[name], self._types[name]
        stacked = len(shape) > 2
        for start in matrices if stacked else range(1):
            if (name, start) not in self._written and shape[-1] == len(factor.order):
                values = self.skeleton.header.tensor(name, start, 1 if stacked else shape[0]).flatten(0, -2)
                self._file.write(name, start, encode_with_feedback(values, kind, factor))
                self._written.add((name, start))

    def state(self) -> State:
        self._file.sync()
        return {"written": sorted(self._written), "imatrix": None if self.imatrix is None else self.imatrix.state()}

    def restore(self, state: State) -> None:
        self._file.restore()
        self._written = {(name, start) for name, start in state["written"]}
        if self.imatrix is not None:
            self.imatrix.restore(state["imatrix"])

    def finish(self) -> Artifact:
        records = tuple(self._write(name) for name in self.skeleton.shapes)
        self._file.finish()
        paths = list(self._file.paths)
        size = sum(path.stat().st_size for path in paths)
        if self.imatrix is not None:
            self.imatrix.write(self.folder / IMATRIX_FILE)
            paths.append(self.folder / IMATRIX_FILE)
        return Artifact(
            variant=self.variant.name,
            folder=self.variant.folder,
            files={str(path.relative_to(self.folder)): file_sha256(path) for path in paths},
            size_bytes=size,
            bits_per_weight=8 * size / self.skeleton.n_parameters,
            tensors=records,
        )

    def discard(self) -> None:
        self._file.discard()

    def _write(self, name: str) -> TensorRecord:
        kind, shape = self._types[name], self.skeleton.shapes[name]
        importance = None
        if self.imatrix is not None and name in self.imatrix.in_sum2:
            importance = self._importance(name, shape)
        rows = max(1, ROWS_BYTES // (4 * prod(shape[1:])))
        step = 1 if len(shape) > 2 else rows
        whole = len(shape) == 2 and (name, 0) in self._written
        starts = range(0 if whole else shape[0] if len(shape) > 1 else 1)[::step]
        try:
            for start in (s for s in starts if (name, s) not in self._written):
                self._file.write(name, start, self._encoded(name, start, step, importance))
        except BadModel as error:
            raise BadModel(f"tensor {name}: {error}") from None
        base = mixture(self.variant.mixture).base
        falls_back = len(shape) > 1 and kind != base and shape[-1] % GGML_TYPES[base].block_size
        note = f"rows of {shape[-1]} are no whole blocks of {base}: {kind}, as llama.cpp does" if falls_back else ""
        return TensorRecord(name=name, type=kind, note=note)

    def _encoded(self, name: str, start: int, count: int, importance: Tensor | None) -> Tensor:
        shape = self.skeleton.shapes[name]
        if len(shape) == 1:
            return encode(self.skeleton.header.tensor(name)[None], self._types[name])
        values = self.skeleton.header.tensor(name, start, min(count, shape[0] - start)).flatten(0, -2)
        own = importance[start] if importance is not None and importance.ndim > 1 else importance
        return encode(values, self._types[name], own)

    def _importance(self, name: str, shape: tuple[int, ...]) -> Tensor:
        assert self.imatrix is not None
        importance: Tensor = self.imatrix.importance(name)
        wanted = shape[-1:] if len(shape) == 2 else (shape[0], shape[-1])
        if tuple(importance.shape) != wanted:
            found, needed = list(importance.shape), list(wanted)
            raise BadModel(f"the importance matrix has shape {found} for {name}, the tensor needs {needed}: of another model?")
        return importance
