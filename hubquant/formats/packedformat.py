"""What differs between GPTQ's folders and AWQ's for those who write and read them; the layouts are in gptq.py and awq.py."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hubquant import __version__
from hubquant.formats import awq, dynamic, gptq
from hubquant.quantize.gptq import DAMP_RATIO
from hubquant.quantize.grid import Grid, QuantizedWeight
from hubquant.recipe import Variant


@dataclass(frozen=True)
class PackedFormat:
    """What the writer and the reader need of a format: its packing, its tensors' suffixes, its config block, its checks.

    `config` is made of the variant, the model's grid, the grids of all linears by their published names (None: dense), and those
    that were packed with; `pack` of a weight and the latter.
    """

    pack: Callable[[QuantizedWeight, Collection[Grid]], dict[str, Tensor]]
    suffixes: tuple[str, ...]
    config: Callable[[Variant, Grid, Mapping[str, Grid | None], Collection[Grid]], dict[str, Any]]
    dequantize: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Tensor]
    check: Callable[[str, Mapping[str, Tensor], Mapping[str, Any]], None]


def _gptq_config(variant: Variant, grid: Grid, grids: Mapping[str, Grid | None], used: Collection[Grid]) -> dict[str, Any]:
    return gptq.quantization_config(
        grid,
        dynamic.rules(grid, grids),
        DAMP_RATIO,
        f"hubquant:{__version__}",
        version=gptq.version_for(used),
        desc_act=variant.order == "actorder",
        lm_head=variant.head,
    )


FORMATS: dict[str, PackedFormat] = {
    "gptq": PackedFormat(
        lambda weight, grids: gptq.pack(weight, gptq.version_for(grids)), gptq.SUFFIXES, _gptq_config, gptq.dequantize, gptq.check
    ),
    "awq": PackedFormat(
        lambda weight, _: awq.pack(weight),
        awq.SUFFIXES,
        lambda _variant, grid, grids, _used: awq.quantization_config(
            grid, sorted(name for name, own in grids.items() if own is None)
        ),
        awq.dequantize,
        awq.check,
    ),
}
