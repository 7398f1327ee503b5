from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hubquant.calibrate.text import load_tokenizer
from hubquant.evaluate.divergence import compare
from hubquant.evaluate.perplexity import windows
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder, read_config


class Noisy(Checkpoint):
    """The base with a little noise on one matrix."""

    def tensor(self, name: str) -> Tensor:
        value = super().tensor(name).float()
        if name == "model.layers.1.mlp.up_proj.weight":
            value = value + 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        return value


@pytest.mark.parametrize("protocol", ["gptq-64", "llamacpp-64"])
def test_the_numbers_are_those_of_the_whole_models(bundled: Path, protocol: str) -> None:
    config = read_config(bundled)
    scored = windows(protocol, "prose-eval", load_tokenizer(bundled), 512)
    told: list[tuple[int, int]] = []
    decoders = {"same": Decoder(config, Checkpoint(bundled)), "noisy": Decoder(config, Noisy(bundled))}
    found = compare(Decoder(config, Checkpoint(bundled)), decoders, scored, lambda done, total: told.append((done, total)))
    same, noisy = found

    base, other = (AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32) for _ in range(2))
    name = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        other.get_parameter(name).copy_(Noisy(bundled).tensor(name))
        p, q = (torch.log_softmax(m(scored.tokens).logits[:, scored.first_scored : -1].double(), -1) for m in (base, other))
    targets = scored.tokens[:, scored.first_scored + 1 :]
    kl = (p.exp() * (p - q)).sum(-1)
    nll = -q.gather(2, targets[..., None])

    assert told == [(i, 4) for i in range(1, 5)]
    assert targets.numel() == noisy.protocol.n_tokens
    assert same.mean_kl == 0 and same.top1_agreement == 1 and same.perplexity == same.base_perplexity
    assert noisy.perplexity == pytest.approx(float(nll.mean().exp()), rel=1e-5)
    assert noisy.mean_kl == pytest.approx(float(kl.mean()), rel=1e-3) and noisy.mean_kl > 1e-4
    assert noisy.p99_kl == pytest.approx(float(kl.flatten().quantile(0.99)), rel=1e-3)
    assert noisy.max_kl == pytest.approx(float(kl.max()), rel=1e-3)
    assert noisy.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
