"""The one pass: every decoder layer is read once, and every variant is made from it while it is in memory.

For each layer: find its distinct inputs, run the calibration tokens through it while three sums are taken per input,
hand tensors and sums to every variant's writer, keep the output as the next layer's input, drop the layer. A layer with so many
experts that their sums would not fit together is taken in parts, with a forward for each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hubquant.artifact import Artifact
from hubquant.calibrate.statistics import InputStatistics
from hubquant.errors import BadModel
from hubquant.formats.writer import ArtifactWriter
from hubquant.model.decoder import Decoder
from hubquant.model.experts import Experts
from hubquant.model.layer import Layer
from hubquant.model.topology import LayerInput, Structure, find_inputs, structure

# The sums of a layer's experts that are held at a time; what is no expert, and one expert, are always held whole.
STATISTICS_BYTES = 4 * 2**30
# How many experts have a say in the scale of what all of them read: each more costs a search.
MAX_FOLLOWING = 8


@torch.no_grad()
def one_pass(
    decoder: Decoder,
    windows: Tensor,
    writers: Sequence[ArtifactWriter],
    progress: Callable[[int, int], None],
    all_experts: bool = False,
) -> tuple[list[Artifact], int, list[str]]:
    """Make all variants of `decoder` from calibration tokens `windows` [n, window].

    Returns the artifacts in the writers' order, how many token rows were dropped because they were not finite, and why which
    variants were given up. `progress` is called with (layers done, layers). `all_experts`: every expert is shown every token.
    Raises BadModel if no variant is left.
    """
    left, notes = list(writers), list[str]()
    for name in decoder.outside():
        tensor = decoder.source.tensor(name).float()
        for writer in left.copy():
            with giving_up(writer, left, notes):
                writer.add_outside(name, tensor)
    hidden = decoder.embed(windows)
    dropped = 0
    stored = decoder.shapes()
    known: dict[Structure, list[LayerInput]] = {}
    for index in range(len(decoder.layers)):
        with decoder.layer(index) as module:
            alike = structure(module)
            if alike not in known:
                known[alike] = find_inputs(module, hidden[:1].clone(), decoder.call(index))
            tensors = {n: t for n, t in module.state_dict().items() if decoder.prefix(index) + n in stored}
            lists = [n for n, m in module.named_modules() if isinstance(m, Experts)]
            parts = list(_parts(tensors, known[alike], lists))
            for part, (names, inputs) in enumerate(parts):
                # the last part's forward makes the next layer's input; the sums of two parts are never held together
                rows = hidden if part == len(parts) - 1 else hidden.clone()
                statistics = observe(decoder, index, module, inputs, rows, all_experts)
                part_tensors = {n: tensors[n].float() for n in names}
                layer = Layer(decoder.prefix(index), part_tensors, tuple(inputs), statistics, _following(tensors, known[alike]))
                for writer in left.copy():
                    with giving_up(writer, left, notes):
                        writer.add_layer(layer)
                dropped += sum(s.dropped_rows for s in statistics.values())
                del layer, statistics
        progress(index + 1, len(decoder.layers))
    return finished(left, notes), dropped, notes


def finished(left: list[ArtifactWriter], notes: list[str]) -> list[Artifact]:
    """The artifacts of those that can be finished."""
    artifacts = []
    for writer in left.copy():
        with giving_up(writer, left, notes):
            artifacts.append(writer.finish())
    return artifacts


@contextmanager
def giving_up(writer: ArtifactWriter, left: list[ArtifactWriter], notes: list[str]) -> Iterator[None]:
    """A BadModel raised inside takes the writer off the list and goes to `notes`. It is raised if none is left."""
    try:
        yield
    except BadModel as error:
        writer.discard()
        left.remove(writer)
        notes.append(f"{writer.variant.name} not made: {error}")
        if not left:
            raise


def _parts(
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
    parts: list[list[str]] = [[""]]
    for expert in (o for o in size if o):
        if parts[-1] != [""] and sum(size[o] for o in parts[-1]) + size[expert] > STATISTICS_BYTES:
            parts.append([])
        parts[-1].append(expert)
    for part in parts:
        yield [n for n in tensors if owner(n) in part], [i for i in inputs if owner(i.name) in part]


def _following(tensors: Mapping[str, Tensor], inputs: Sequence[LayerInput]) -> dict[str, tuple[Tensor, ...]]:
    """The weights of some evenly chosen experts by the input whose scale they take."""
    followers: dict[str, list[LayerInput]] = {}
    for read in inputs:
        if read.follows:
            followers.setdefault(read.follows, []).append(read)
    return {
        name: tuple(tensors[f"{n}.weight"].float() for read in reads[:: -(-len(reads) // MAX_FOLLOWING)] for n in read.linears)
        for name, reads in followers.items()
    }


def observe(
    decoder: Decoder, index: int, module: nn.Module, inputs: Sequence[LayerInput], hidden: Tensor, all_experts: bool = False
) -> dict[str, InputStatistics]:
    """Run the layer over all windows, in place in `hidden`, and return the sums of each distinct input by its name.

    `all_experts`: every expert is shown every token, for this run only: inputs are told apart by what the router sends.
    """
    widths = {i.name: module.get_parameter(f"{i.name}.weight").shape[1] for i in inputs}
    statistics = {name: InputStatistics(width, hidden.device) for name, width in widths.items()}
    handles = [
        module.get_submodule(name).register_forward_pre_hook(lambda _module, args, s=sums: s.add(args[0]))
        for name, sums in statistics.items()
    ]
    lists = [m for m in module.modules() if isinstance(m, Experts)]
    try:
        for experts in lists:
            experts.every_token = all_experts
        decoder.run(index, module, hidden)
    finally:
        for experts in lists:
            experts.every_token = False
        for handle in handles:
            handle.remove()
    return statistics
