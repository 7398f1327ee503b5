"""The one pass: every decoder layer is read once, and every variant is made from it while it is in memory.

For each layer: find its distinct inputs, run the calibration tokens through it while three sums are taken per input,
hand tensors and sums to every variant's writer, keep the output as the next layer's input, drop the layer.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hubquant.artifact import Artifact
from hubquant.calibrate.statistics import InputStatistics
from hubquant.formats.writer import ArtifactWriter
from hubquant.model.decoder import Decoder
from hubquant.model.layer import Layer
from hubquant.model.topology import LayerInput, Structure, find_inputs, structure


@torch.no_grad()
def one_pass(
    decoder: Decoder, windows: Tensor, writers: Sequence[ArtifactWriter], progress: Callable[[int, int], None]
) -> tuple[list[Artifact], int]:
    """Make all variants of `decoder` from calibration tokens `windows` [n, window].

    Returns the artifacts in the writers' order, and how many token rows were dropped because they were not finite.
    `progress` is called with (layers done, layers).
    """
    for name in decoder.outside():
        tensor = decoder.source.tensor(name).float()
        for writer in writers:
            writer.add_outside(name, tensor)
    hidden = decoder.embed(windows)
    dropped = 0
    known: dict[Structure, list[LayerInput]] = {}
    for index in range(len(decoder.layers)):
        with decoder.layer(index) as module:
            alike = structure(module)
            if alike not in known:
                known[alike] = find_inputs(module, hidden[:1].clone(), decoder.call(index))
            inputs = known[alike]
            statistics = observe(decoder, index, module, inputs, hidden)
            tensors = {n: p.detach().float() for n, p in module.named_parameters()}
            layer = Layer(decoder.prefix(index), tensors, tuple(inputs), statistics)
            for writer in writers:
                writer.add_layer(layer)
            dropped += sum(s.dropped_rows for s in statistics.values())
        progress(index + 1, len(decoder.layers))
    return [writer.finish() for writer in writers], dropped


def observe(
    decoder: Decoder, index: int, module: nn.Module, inputs: Sequence[LayerInput], hidden: Tensor
) -> dict[str, InputStatistics]:
    """Run the layer over all windows, in place in `hidden`, and return the sums of each distinct input by its name."""
    widths = {i.name: module.get_parameter(f"{i.name}.weight").shape[1] for i in inputs}
    statistics = {name: InputStatistics(width, hidden.device) for name, width in widths.items()}
    handles = [
        module.get_submodule(name).register_forward_pre_hook(lambda _module, args, s=sums: s.add(args[0]))
        for name, sums in statistics.items()
    ]
    try:
        decoder.run(index, module, hidden)
    finally:
        for handle in handles:
            handle.remove()
    return statistics
