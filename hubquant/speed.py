"""How fast this machine does what a pass does, measured by small pieces of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch

from hubquant.formats.gguf.auto import candidate_types
from hubquant.formats.gguf.mixtures import mixture
from hubquant.quantize import awq, gptq
from hubquant.quantize.feedback import block_factor, encode_with_feedback
from hubquant.quantize.grid import Grid
from hubquant.recipe import Recipe, Variant, variant

USUAL_BITS = 4.5  # per weight


@dataclass(frozen=True)
class Speed:
    """Multiplications and additions per second; seconds per weight of AWQ's search, GPTQ's fitting, and GGUF's encoding."""

    products: float
    searching: float
    fitting: float
    encoding: Mapping[str, float]  # by variant

    @classmethod
    def measured(cls, recipe: Recipe) -> "Speed":
        random = torch.Generator().manual_seed(0)
        rows, width = 512, 256
        square, weight = (torch.randn(1024, 1024, generator=random), torch.randn(rows, width, generator=random))
        hessian, grid = torch.eye(width), Grid(4, 128, False)
        of_variant = {name: kinds(variant(name)) for name in recipe.variants if variant(name).format == "gguf"}
        encoded = partial(encode_with_feedback, weight, factor=block_factor(hessian))
        of_kind = {k: _seconds(partial(encoded, k)) for k in sorted({*chain(*of_variant.values())})}
        return cls(
            products=2 * 1024**3 / _seconds(lambda: square @ square),
            searching=_seconds(lambda: awq.search_scale([weight], torch.ones(width), grid)) / weight.numel(),
            fitting=_seconds(lambda: gptq.solve(weight, hessian, grid)) / weight.numel(),
            encoding={name: sum(of_kind[kind] for kind in types) / weight.numel() for name, types in of_variant.items()},
        )


def kinds(wanted: Variant) -> tuple[str, ...]:
    """The GGUF types that every weight is encoded in: the one that most have, or all candidates of a choice by sensitivity (of a
    budget of bytes those around USUAL_BITS)."""
    if wanted.format != "gguf":
        return ()
    return candidate_types(wanted.bits_per_weight or USUAL_BITS) if wanted.by_sensitivity else (mixture(wanted.mixture).base,)


def _seconds(work: Callable[[], object]) -> float:
    """Of the second run: the first one loads what the others find."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
