from pathlib import Path

import torch
from torch import Tensor

from hubquant.calibrate.statistics import InputStatistics
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder, read_config
from hubquant.model.layer import Layer
from hubquant.model.layercall import apply_layer
from hubquant.model.topology import find_inputs
from hubquant.onepass import observe


def test_folding_leaves_the_function_as_it_is(bundled: Path, tokens: Tensor) -> None:
    decoder = Decoder(read_config(bundled), Checkpoint(bundled))
    hidden = decoder.embed(tokens)
    generator = torch.Generator().manual_seed(1)
    with decoder.layer(0) as module, torch.no_grad():
        inputs = find_inputs(module, hidden[:1].clone(), decoder.call(0))
        before = apply_layer(module, hidden.clone(), decoder.call(0))
        statistics = observe(decoder, 0, module, inputs, hidden.clone())
        tensors = {n: p.detach().clone() for n, p in module.named_parameters()}
        layer = Layer(decoder.prefix(0), tensors, tuple(inputs), statistics)
        scales = {}
        for read in inputs:
            assert read.absorber is not None
            per_source = torch.exp2(torch.rand(int(read.absorber.channels.max()) + 1, generator=generator) * 4 - 2)
            scales[read.name] = per_source[read.absorber.channels]
        folded = layer.folded(scales, torch.float16)
        for name, value in folded.tensors.items():
            module.get_parameter(name).copy_(value)
        after = apply_layer(module, hidden.clone(), decoder.call(0))
        # what the folded layer's linears read is what `scaled` says they read
        seen = observe(decoder, 0, module, inputs, hidden.clone())
    # every product of the layer is off by a few roundings of 2^-24, accumulated over sums of at most 768 terms
    scale = float(before.abs().max())
    assert float((after - before).abs().max()) < 768 * 2.0**-24 * scale * 4
    for read in inputs:
        wanted = folded.statistics[read.name].hessian
        torch.testing.assert_close(seen[read.name].hessian, wanted, rtol=1e-3, atol=float(wanted.abs().max()) * 1e-5)
    norm = folded.tensors["input_layernorm.weight"]
    assert torch.equal(norm, norm.half().float()), "the norm is stored in float16 without a further rounding"
    for name in (f"{linear}.weight" for read in inputs for linear in read.linears):
        # rounded the same before and after the fold, a weight is as far off: by as much as all its rows and columns are scaled
        statistics_before, statistics_after = layer.statistics_of(name), folded.statistics_of(name)
        assert statistics_before is not None and statistics_after is not None
        rounded = (layer.tensors[name] * 64).round() / 64
        error = torch.where(layer.tensors[name] == 0, 0, folded.tensors[name] * (rounded / layer.tensors[name] - 1))
        losses = ((error @ statistics_after.hessian) * error).sum(1)
        expected = statistics_before.output_error(layer.tensors[name], rounded)
        assert abs(folded.output_error(name, losses) / expected - 1) < 1e-3


def test_the_statistics_of_a_tensor_are_those_of_its_input() -> None:
    from hubquant.model.topology import LayerInput

    sums = InputStatistics(4)
    layer = Layer("l.", {}, (LayerInput(("a.q", "a.k"), None),), {"a.q": sums})
    assert layer.statistics_of("a.k.weight") is sums
    assert layer.statistics_of("norm.weight") is None
