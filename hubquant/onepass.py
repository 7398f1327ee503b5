"""The one pass: every decoder layer is read once, and every variant is made from it while it is in memory.

For each layer: find its distinct inputs, run the calibration tokens through it while the products of its inputs are summed,
hand tensors and sums to every variant's writer, keep the output as the next layer's input, drop the layer. A layer with so many
experts that their sums would not fit together is taken in parts, with a forward for each.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hubquant import memory
from hubquant.artifact import Artifact
from hubquant.bookmark import Bookmark
from hubquant.calibrate.statistics import InputStatistics, token_importance
from hubquant.errors import BadModel
from hubquant.formats.writer import ArtifactWriter
from hubquant.model.decoder import Decoder
from hubquant.model.experts import Experts
from hubquant.model.hidden import Hidden
from hubquant.model.layer import Layer
from hubquant.model.topology import LayerInput, find_inputs, structure
from hubquant.parts import following, parts


@torch.no_grad()
def one_pass(
    decoder: Decoder,
    windows: Tensor,
    writers: Sequence[ArtifactWriter],
    progress: Callable[[int, int], None],
    bookmark: Bookmark,
    all_experts: bool = False,
) -> list[Artifact]:
    """Make all variants of `decoder` from calibration tokens `windows` [n, window]; returns the artifacts in the writers' order.

    It goes on where `bookmark` stands, which knows in the end how many token rows were dropped because they were not finite, and
    why which variants were given up. `progress` is called with (layers done, layers). `all_experts`: every expert is shown every
    token. Raises BadModel if no variant is left.
    """
    at, left, n_layers = bookmark.standing, list(writers), len(decoder.layers)
    progress(at.next_layer, n_layers)
    if bookmark.begun:
        for writer in left:
            writer.restore(at.writers[writer.variant.name])
    else:
        _add_outside(decoder, left, bookmark)
    if at.finished:
        return finish(left, bookmark)
    # in any case up to the first layer: so it is noted how the model calls its layers
    hidden = bookmark.opened(decoder.embed_to(windows, bookmark.hidden(0)))
    if not bookmark.begun:
        bookmark.save(left, hidden)
    stored = decoder.shapes()
    known = {structure(decoder.layers[first]): inputs for first, inputs in at.inputs.items()}
    for index in range(at.next_layer, n_layers):
        after = hidden.alike(bookmark.hidden(index + 1))
        with decoder.layer(index) as module:
            alike = structure(module)
            if alike not in known:
                known[alike] = at.inputs[index] = find_inputs(module, hidden[:1], decoder.call(index))
            tensors = {n: t for n, t in module.state_dict().items() if decoder.prefix(index) + n in stored}
            lists = [n for n, m in module.named_modules() if isinstance(m, Experts)]
            for names, inputs in parts(tensors, known[alike], lists):
                # each part has a forward of its own: the sums of two parts are never held together
                statistics = observe(decoder, index, module, inputs, hidden, all_experts, after)
                part_tensors = {n: tensors[n].float() for n in names}
                layer = Layer(decoder.prefix(index), part_tensors, tuple(inputs), statistics, following(tensors, known[alike]))
                for writer in left.copy():
                    with giving_up(writer, left, bookmark):
                        writer.add_layer(layer)
                at.dropped_rows += sum(s.dropped_rows for s in statistics.values())
                del layer, part_tensors, statistics
            del tensors
        memory.trim()
        at.next_layer, hidden = index + 1, after
        bookmark.save(left, hidden)
        progress(index + 1, n_layers)
    if packing := [writer for writer in left if writer.packs_head]:
        layer = head_layer(decoder, hidden)
        for writer in packing:
            with giving_up(writer, left, bookmark):
                writer.add_layer(layer)
    return finish(left, bookmark)


def finish(writers: Sequence[ArtifactWriter], bookmark: Bookmark) -> list[Artifact]:
    """The artifacts of those that can be finished, in the order of the writers, after those that were finished before a kill."""
    left = list(writers)
    for writer in writers:
        with giving_up(writer, left, bookmark):
            artifact = writer.finish()
            left.remove(writer)
            bookmark.standing.finished[writer.variant.name] = artifact
            bookmark.save(left)
            writer.discard()
    return list(bookmark.standing.finished.values())


@contextmanager
def giving_up(writer: ArtifactWriter, left: list[ArtifactWriter], bookmark: Bookmark) -> Iterator[None]:
    """A BadModel raised inside takes the writer off the list, with a note in the bookmark. It is raised if no variant is left."""
    try:
        yield
    except BadModel as error:
        writer.discard()
        left.remove(writer)
        name = writer.variant.name
        bookmark.standing.given_up[name] = f"{name} not made: {error}"
        if not left and not bookmark.standing.finished:
            raise


def _add_outside(decoder: Decoder, left: list[ArtifactWriter], bookmark: Bookmark) -> None:
    for name in decoder.outside():
        tensor = decoder.source.tensor(name).to(decoder.device).float()
        for writer in left.copy():
            with giving_up(writer, left, bookmark):
                writer.add_outside(name, tensor)
        decoder.source.release()


def head_layer(decoder: Decoder, hidden: Hidden) -> Layer:
    """The head as a layer: one linear and the sums of what it reads, with `hidden` the output of the last layer."""
    weight = decoder.head_name()
    linear = weight.removesuffix(".weight")
    with decoder.head() as model:
        module = model.get_submodule(linear)
        sums = InputStatistics(module.get_parameter("weight").shape[1], decoder.device)
        handle = module.register_forward_pre_hook(lambda _module, args: sums.add(args[0]))
        try:
            for window in decoder.windows(hidden):
                decoder.logits(window)
        finally:
            handle.remove()
        tensor = module.get_parameter("weight").float()
    return Layer("", {weight: tensor}, (LayerInput((linear,), None),), {linear: sums})


def observe(
    decoder: Decoder,
    index: int,
    module: nn.Module,
    inputs: Sequence[LayerInput],
    hidden: Hidden,
    all_experts: bool = False,
    into: Hidden | None = None,
) -> dict[str, InputStatistics]:
    """Run the layer over all windows, to `into` or over `hidden`, and return the sums of each distinct input by its name.

    `all_experts`: every expert is shown every token, for this run only: inputs are told apart by what the router sends.
    """
    widths = {i.name: module.get_parameter(f"{i.name}.weight").shape[1] for i in inputs}
    statistics = {name: InputStatistics(width, decoder.device) for name, width in widths.items()}
    lists = {n: m for n, m in module.named_modules() if isinstance(m, Experts)}
    read: list[tuple[InputStatistics, Tensor, Tensor | None]] = []

    def note(name: str, x: Tensor) -> None:
        """Until the layer's output says what each token counts; a copy, since the model may go on in the same memory."""
        owner = next((m for path, m in lists.items() if name.startswith(f"{path}.")), None)
        read.append((statistics[name], x.clone(), owner.sent if owner else None))

    def add(output: Tensor) -> None:
        importance = token_importance(output)
        for sums, x, tokens in read:
            of_rows = importance if tokens is None else importance[tokens]
            sums.add(x, of_rows if of_rows.numel() * sums.width == x.numel() else None)
        read.clear()

    handles = [
        module.get_submodule(name).register_forward_pre_hook(lambda _module, args, n=name: note(n, args[0])) for name in statistics
    ]
    try:
        for experts in lists.values():
            experts.every_token = all_experts
        decoder.run(index, module, hidden, into, add)
    finally:
        for experts in lists.values():
            experts.every_token = False
        for handle in handles:
            handle.remove()
    return statistics
