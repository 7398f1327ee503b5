"""What a pass will need, before it begins: memory, disk and time, from the shapes of the model and what the writers hold of them.

Every term is a tensor that lives at that moment; where several steps follow each other the largest counts. What the interpreter
and its libraries take is measured.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from hubquant import estimate, memory
from hubquant.base import device_named
from hubquant.errors import DiskFull, MemoryShort
from hubquant.formats.shards import MAX_SHARD_BYTES
from hubquant.model.decoder import Decoder
from hubquant.model.experts import Experts
from hubquant.model.topology import Structure, structure
from hubquant.parts import STATISTICS_BYTES
from hubquant.quantize.compensation import strip_bytes
from hubquant.quantize.feedback import has_blocks
from hubquant.quantize.ggml import GGML_TYPES
from hubquant.quantize.scales import SCALES, part_bytes
from hubquant.recipe import BITS, Frozen, Recipe, Variant, variant
from hubquant.refine import BATCH, CHUNK
from hubquant.speed import Speed, kinds

FLOAT = 4  # bytes
HALF = 2
AT_WORK = 8  # targets, codes, errors, gradients and their like, of the rows that are solved at a time
PROBED = 8  # tokens that are sent through a layer to see which linears read the same
LEARNING = 6 * FLOAT  # of a scale: it, its change, the gradient, two moments, their product


class Needs(Frozen):
    """Bytes at their peak. `memory_bytes`: resident, of the whole process; `disk_bytes`: in the output folder, of which
    `output_bytes` stay."""

    memory_bytes: int
    disk_bytes: int
    output_bytes: int
    seconds: float


@dataclass(frozen=True)
class Reading:
    """The linears that read one input of `width` channels, by their numbers of rows. `expert`: of an expert."""

    width: int
    rows: tuple[int, ...]
    expert: bool = False

    @property
    def sums(self) -> int:
        return FLOAT * self.width**2

    @property
    def weights(self) -> int:
        return FLOAT * self.width * sum(self.rows)

    @property
    def largest(self) -> int:
        return FLOAT * self.width * max(self.rows)

    @property
    def solving(self) -> int:
        """GPTQ: the folded weights and those stacked, with H folded, reordered, and its factor; or those, codes, the factor and
        what is at work of some rows; then the words that codes are packed in, in the making."""
        factor = 2 * self.weights + 2 * self.sums
        rounding = 2 * self.weights + self.weights // FLOAT + self.sums + AT_WORK * min(self.weights, strip_bytes())
        packing = self.weights + self.weights // FLOAT + 4 * self.largest
        return self.sums + max(factor, rounding, packing)

    @property
    def factor(self) -> int:
        """Of H: kept while the layer is at work, for all GGUF variants."""
        return FLOAT * self.width**2

    @property
    def encoding(self) -> int:
        """GGUF: the factor in the making beside H reordered; or the matrix, its bytes, and what is at work of some rows; without
        error feedback the decoded matrix and its error."""
        decoding = 0 if has_blocks(self.width) else 4 * self.largest
        return max(2 * self.factor, 2 * self.largest + AT_WORK * min(self.largest, strip_bytes()), decoding)

    def seconds(self, variants: Sequence[Variant], tokens: int, speed: Speed) -> float:
        """Of all that is done for these linears, in one pass over so many tokens."""
        weights = self.width * sum(self.rows)
        formats = [v.format for v in variants]
        factor = 2 / 3 * self.width**3  # 1/3, at half the speed
        shared = ("gguf" in formats) + any(f != "gguf" for f in formats)  # all GGUF variants' factor; the one of AWQ's scales
        products = tokens * (2.0 * weights + self.width**2) + weights * self.width + shared * factor  # forward, sums, energies
        others = 0.0
        # carrying errors to the columns after, and the gradient from those: each pair of columns is one product; following the
        # codes that move in all sweeps takes as long
        solving = 3 * weights * self.width
        for v in variants:
            if v.format == "gguf":
                products += solving * len(kinds(v))
                others += weights * speed.encoding[v.name]
            else:
                times = len(BITS) if v.by_sensitivity else 1
                products += times * (solving + factor)
                others += weights * (speed.searching + times * speed.fitting)
        return products / speed.products + others


@dataclass(frozen=True)
class LayerShape:
    weights: int  # bytes in float32
    readings: tuple[Reading, ...]

    @cached_property
    def parts(self) -> int:
        """In how many parts the pass takes it."""
        return max(1, -(-sum(r.sums for r in self.readings if r.expert) // STATISTICS_BYTES))

    def peak(self, variants: Sequence[Variant], tokens: int) -> int:
        """Bytes while the layer is at work; `tokens` of one window."""
        sums = sum(r.sums // (self.parts if r.expert else 1) for r in self.readings)
        formats = [v.format for v in variants]
        factors = sum(r.factor // (self.parts if r.expert else 1) for r in self.readings) if "gguf" in formats else 0
        # they are there for a packed variant too if a GGUF variant came before it
        kept = factors if any(f != "gguf" and "gguf" in formats[:i] for i, f in enumerate(formats)) else 0
        stages = [FLOAT * tokens * 4 * max(max(r.rows) for r in self.readings)]
        if set(formats) - {"gguf"}:
            stages += [kept + r.solving for r in self.readings]
        if factors:
            stages += [factors + r.encoding for r in self.readings]
        return self.weights + sums + max(stages)


@dataclass(frozen=True)
class ModelShape:
    """`outside`: the parameters beside the layers; `stored`: bytes per weight of the checkpoint."""

    layers: tuple[LayerShape, ...]  # one of each kind, with how often it comes
    counts: tuple[int, ...]
    outside: Mapping[str, tuple[int, ...]]
    hidden: int
    parameters: int
    stored: int

    @property
    def vocabulary(self) -> int:
        """Parameters of embeddings and head."""
        return sum(prod(shape) for shape in self.outside.values() if len(shape) > 1)

    def memory(self, recipe: Recipe, baseline: int, device: torch.device) -> int:
        """Resident bytes at the peak of a pass. On a GPU its memory holds the layers, which is not predicted."""
        largest = max(prod(shape) for shape in self.outside.values())
        together = sum(prod(shape) for shape in self.outside.values())
        variants = [variant(name) for name in recipe.variants]
        packed = any(v.format != "gguf" for v in variants)
        storing = (FLOAT + self.stored + (HALF if packed else 1)) * largest
        embedding = FLOAT * together + self.stored * together
        here = () if device.type == "cuda" else self.layers
        layers = [layer.peak(variants, recipe.calibration.window) for layer in here]
        refining = [self.refining(v, recipe) for v in variants] if recipe.refine and device.type != "cuda" else []
        return baseline + max(storing, embedding, *layers, *refining)

    def refining(self, wanted: Variant, recipe: Recipe) -> int:
        """Bytes while scales are learned: the parts of all layers' weights, two heads, what goes into the first layer, logits of
        both models with their gradients; scales with what learning keeps of each, what goes into every layer of a step's tokens,
        of one layer its weights and their gradients."""
        if wanted.format == "gguf":
            of_weight = max(part_bytes(k) + LEARNING * len(SCALES.get(k, ())) / GGML_TYPES[k].block_size for k in kinds(wanted))
        else:
            of_weight = HALF + (LEARNING / wanted.group_size if wanted.group_size > 0 else 0)
        layers = sum(count * layer.weights // FLOAT for layer, count in zip(self.layers, self.counts, strict=True))
        calibration = recipe.calibration
        hidden = self.hidden * (calibration.windows * calibration.window + sum(self.counts) * max(BATCH, calibration.window))
        rows = max(shape[0] for shape in self.outside.values() if len(shape) > 1)
        working = 3 * max(layer.weights for layer in self.layers)
        return round(of_weight * layers) + FLOAT * (2 * self.vocabulary + hidden + 5 * CHUNK * rows) + working

    def seconds(self, recipe: Recipe, speed: Speed) -> float:
        """Of a pass, without what comes before and after it."""
        variants = [variant(name) for name in recipe.variants]
        tokens = recipe.calibration.windows * recipe.calibration.window
        counted = zip(self.layers, self.counts, strict=True)
        layers = sum(count * sum(r.seconds(variants, tokens, speed) for r in layer.readings) for layer, count in counted)
        outside = sum(prod(shape) for shape in self.outside.values())
        # forward, again for the gradients, and twice as much for these
        learning = recipe.refine * len(variants) * BATCH * 4 * 2 * self.parameters / speed.products
        return layers + outside * sum(speed.encoding.values()) + learning


class Announced:
    """A TensorSource of zeros that take no memory: only shapes count."""

    def __init__(self) -> None:
        self.shapes: Mapping[str, tuple[int, ...]] = {}

    def names(self) -> list[str]:
        return []

    def tensor(self, name: str) -> Tensor:
        return torch.zeros(()).expand(self.shapes[name])

    def as_saved(self, name: str) -> bool:
        return False

    def release(self) -> None:
        """Nothing was read."""


def shape_of(config: PretrainedConfig) -> ModelShape:
    """Built from its config and run with zeros, a layer of each kind, to see which linears read the same. Raises BadModel."""
    source = Announced()
    decoder = Decoder(config, source)
    source.shapes = shapes = decoder.shapes()
    hidden = decoder.embed(torch.zeros(1, PROBED, dtype=torch.int64))
    found: dict[Structure, LayerShape] = {}
    counts: dict[Structure, int] = {}
    for index, layer in enumerate(decoder.layers):
        alike = structure(layer)
        counts[alike] = counts.get(alike, 0) + 1
        if alike not in found:
            weights = sum(FLOAT * prod(s) for n, s in shapes.items() if n.startswith(decoder.prefix(index)))
            with decoder.layer(index) as module:
                found[alike] = LayerShape(weights, _readings(decoder, index, module, hidden.clone()))
    outside = {name: shapes[name] for name in decoder.outside()}
    dtype = config.dtype or torch.float32
    parameters = sum(prod(shape) for shape in shapes.values())
    return ModelShape(tuple(found.values()), tuple(counts.values()), outside, hidden.shape[-1], parameters, dtype.itemsize)


def _readings(decoder: Decoder, index: int, module: nn.Module, hidden: Tensor) -> tuple[Reading, ...]:
    """Linears by the tensor that they read: views of one count as one, as in the pass."""
    linears = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    lists = {name: m for name, m in module.named_modules() if isinstance(m, Experts)}
    read: dict[str, Tensor] = {}
    handles = [m.register_forward_pre_hook(lambda _m, args, n=n: read.__setitem__(n, args[0])) for n, m in linears.items()]
    try:
        for experts in lists.values():
            experts.every_token = True
        decoder.run(index, module, hidden)
    finally:
        for experts in lists.values():
            experts.every_token = False
        for handle in handles:
            handle.remove()
    groups: dict[tuple[int, int, str], list[str]] = {}
    for name, x in read.items():
        owner = next((f"{path}.{name[len(path) + 1 :].partition('.')[0]}" for path in lists if name.startswith(f"{path}.")), "")
        groups.setdefault((x.data_ptr(), x.shape[-1], owner), []).append(name)
    return tuple(
        Reading(width, tuple(linears[n].out_features for n in names), bool(owner)) for (_, width, owner), names in groups.items()
    )


def needs(shape: ModelShape, recipe: Recipe, device: torch.device | None = None) -> Needs:
    """Of a pass in which every variant of the recipe can be made, in this process, on `device` (a GPU if there is one)."""
    speed = Speed.measured(recipe)  # first: what it loads is part of what the process takes
    sizes = {name: estimate.size_bytes(variant(name), shape.parameters, shape.vocabulary) for name in recipe.variants}
    calibration = recipe.calibration
    hidden = FLOAT * calibration.windows * calibration.window * shape.hidden
    # the last file of a packed variant is put together from its parts: for that moment it is there twice
    packed = [min(size, MAX_SHARD_BYTES) for name, size in sizes.items() if variant(name).format != "gguf"]
    output = sum(sizes.values())
    chosen = [v.format for v in map(variant, recipe.variants) if v.by_sensitivity]
    by_kind = [GGML_TYPES[k].bits_per_weight for v in map(variant, recipe.variants) if v.by_sensitivity for k in kinds(v)]
    of_widths = sum(estimate.bits_per_weight(variant(f"gptq-int{bits}-g128")) for bits in BITS) * chosen.count("gptq")
    trials = round((shape.parameters * sum(by_kind) + (shape.parameters - shape.vocabulary) * of_widths) / 8)
    return Needs(
        memory_bytes=shape.memory(recipe, memory.resident(), device or device_named()),
        disk_bytes=output + trials + max(2 * hidden, hidden + max(packed, default=0)),
        output_bytes=output,
        seconds=shape.seconds(recipe, speed),
    )


def check(wanted: Needs, out: Path) -> None:
    """Raises MemoryShort or DiskFull if the machine has less than is needed; what lies in the output folder will be replaced."""
    replaced = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    free, disk = memory.available(), shutil.disk_usage(out).free + replaced
    left = wanted.memory_bytes - memory.resident()
    if free is not None and left > free:
        raise MemoryShort(
            f"this pass needs about {wanted.memory_bytes / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; "
            "ask for fewer variants, free some, or go on anyway with --anyway"
        )
    if wanted.disk_bytes > disk:
        raise DiskFull(
            f"this pass needs about {wanted.disk_bytes / 1e9:.1f} GB in {out}, and {disk / 1e9:.1f} GB are free; "
            "ask for fewer variants, name another folder, or go on anyway with --anyway"
        )
