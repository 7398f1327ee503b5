"""A layer in parts: one with so many experts that their sums would not fit together is taken in several goes."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from hubquant.model.topology import LayerInput

# The sums of a layer's experts that are held at a time; what is no expert, and one expert, are always held whole.
STATISTICS_BYTES = 4 * 2**30
# How many experts have a say in the scale of what all of them read: each more costs a search.
MAX_FOLLOWING = 8


def parts(
    tensors: Mapping[str, Tensor], inputs: Sequence[LayerInput], lists: Sequence[str]
) -> Iterator[tuple[list[str], list[LayerInput]]]:
    """Names of tensors and the inputs of their linears, in parts: what is no expert with as many experts as STATISTICS_BYTES
    allow, then the other experts likewise. `lists`: names of the lists of experts."""

    def owner(name: str) -> str:
        """The expert that a tensor or linear belongs to, or ""."""
        path = next((p for p in lists if name.startswith(f"{p}.")), None)
        return "" if path is None else f"{path}.{name.removeprefix(f'{path}.').partition('.')[0]}"

    size = dict.fromkeys([*map(owner, tensors)], 0)
    for read in inputs:
        size[owner(read.name)] += 4 * tensors[f"{read.name}.weight"].shape[1] ** 2
    size[""] = 0
    found: list[list[str]] = [[""]]
    for expert in (o for o in size if o):
        if found[-1] != [""] and sum(size[o] for o in found[-1]) + size[expert] > STATISTICS_BYTES:
            found.append([])
        found[-1].append(expert)
    for part in found:
        yield [n for n in tensors if owner(n) in part], [i for i in inputs if owner(i.name) in part]


def following(tensors: Mapping[str, Tensor], inputs: Sequence[LayerInput]) -> dict[str, tuple[Tensor, ...]]:
    """The weights of some evenly chosen experts by the input whose scale they take."""
    followers: dict[str, list[LayerInput]] = {}
    for read in inputs:
        if read.follows:
            followers.setdefault(read.follows, []).append(read)
    return {
        name: tuple(tensors[f"{n}.weight"].float() for read in reads[:: -(-len(reads) // MAX_FOLLOWING)] for n in read.linears)
        for name, reads in followers.items()
    }
