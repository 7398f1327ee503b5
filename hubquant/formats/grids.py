"""Which grid each linear of a GPTQ or AWQ model is stored on: the variant's, one of smaller groups, an override's, or none."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from math import gcd

from hubquant.errors import BadModel
from hubquant.quantize.grid import Grid
from hubquant.recipe import GROUP_SIZES, ROW, Override, Variant

WORD = 32  # bits that a packed word holds
SMALLEST_GROUP = min(GROUP_SIZES)


class Grids:
    """`default`: the grid of the model, with ROW for a whole row; `of`: by a linear's name, None where it is left dense.

    `why` says what keeps a linear dense, `asked` which group size it was to have. Raises BadModel if no linear can be
    packed, or an override is of none.
    """

    def __init__(
        self,
        variant: Variant,
        widths: Mapping[str, tuple[int, ...]],
        dense: Mapping[str, str],
        overrides: Sequence[Override] = (),
        stored: Callable[[str], str] = str,
    ) -> None:
        """`widths`: [out, in] by the name of a linear's weight; `dense`: the reason by the names that are never packed. `overrides`
        match the names that `stored` gives."""
        self.of: dict[str, Grid | None] = {}
        self.asked: dict[str, int] = {}
        self.why = dict(dense)
        wanted = {name: _override(overrides, stored(name).removesuffix(".weight")) for name in widths}
        matched = {o.pattern for o in wanted.values() if o is not None}
        if unmatched := [o.pattern for o in overrides if o.pattern not in matched]:
            names = ", ".join(sorted({stored(name).removesuffix(".weight") for name in wanted})[:2])
            raise BadModel(f"--dynamic {unmatched[0]!r} is the setting of no linear; their names are like {names}")
        usual = [n for n, o in wanted.items() if o is None and n not in dense and fits(widths[n], variant.bits)]
        size = _largest(variant.group_size, [widths[n][1] for n in usual])
        self.default = Grid(variant.bits, size, variant.symmetric)
        for name, override in wanted.items():
            grid, asked = self.default, variant.group_size
            if override is not None:
                asked = override.group_size
                grid = Grid(override.bits, _largest(asked, [widths[name][1]]), override.symmetric)
            if override is not None and override.bits == 0:
                self.why[name] = f"left so by {override.pattern}"
            elif not fits(widths[name], grid.bits):
                self.why.setdefault(name, f"shape {list(widths[name])} is no multiple of [{rows(grid.bits)}, {multiple(grid)}]")
            self.of[name], self.asked[name] = None if name in self.why else grid, asked
        if not any(self.of.values()):
            raise BadModel(
                f"no linear of this model can be packed: each needs inputs in multiples of {SMALLEST_GROUP} and outputs in "
                f"multiples of {rows(variant.bits)}"
            )

    def kept(self) -> Collection[str]:
        """The linears that are left dense."""
        return [name for name, grid in self.of.items() if grid is None]

    def keep(self, name: str, why: str) -> None:
        """Leave the linear dense."""
        self.of[name] = None
        self.why.setdefault(name, why)


def rows(bits: int) -> int:
    """How many outputs fill whole words of zeros."""
    return WORD // gcd(bits, WORD)


def multiple(grid: Grid) -> int:
    return SMALLEST_GROUP if grid.group_size == ROW else grid.group_size


def fits(shape: Sequence[int], bits: int) -> bool:
    return shape[1] % SMALLEST_GROUP == 0 and shape[0] % rows(bits) == 0


def _override(overrides: Sequence[Override], name: str) -> Override | None:
    """The first whose pattern matches from the start of the name."""
    return next((override for override in overrides if re.match(override.pattern, name)), None)


def _largest(wanted: int, widths: Sequence[int]) -> int:
    """The wanted group size, or the largest below it that divides every width that any does."""
    if wanted == ROW:
        return ROW
    sizes = [size for size in sorted(GROUP_SIZES, reverse=True) if size <= wanted]
    return next((s for s in (wanted, *sizes) if all(width % s == 0 for width in widths)), SMALLEST_GROUP)
