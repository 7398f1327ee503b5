"""Base and variants side by side over the same windows, one decoder layer of each in memory at a time."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from hubquant_kernels.divergence import divergence
from torch import Tensor

from hubquant.artifact import Evaluation
from hubquant.evaluate.perplexity import Windows, perplexity
from hubquant.model.decoder import Decoder

BASE = ""


def compare(
    base: Decoder, variants: Mapping[str, Decoder], windows: Windows, progress: Callable[[int, int], None]
) -> list[Evaluation]:
    """One Evaluation per variant, in their order. The base runs once for all of them.

    `progress` is called with (layers done, layers).
    """
    decoders = {BASE: base, **variants}
    hidden = {name: decoder.embed(windows.tokens) for name, decoder in decoders.items()}
    n_layers = len(base.layers)
    for index in range(n_layers):
        for name, decoder in decoders.items():
            with decoder.layer(index) as layer:
                decoder.run(index, layer, hidden[name])
        progress(index + 1, n_layers)
    return _score(decoders, hidden, windows)


@torch.no_grad()
def _score(decoders: Mapping[str, Decoder], hidden: Mapping[str, Tensor], windows: Windows) -> list[Evaluation]:
    sums = {name: _Sums() for name in decoders}
    with ExitStack() as stack:
        for decoder in decoders.values():
            stack.enter_context(decoder.head())
        for i, tokens in enumerate(windows.tokens):
            targets = tokens[windows.first_scored + 1 :].to(hidden[BASE].device)
            base_logits = _scored(decoders[BASE], hidden[BASE][i], windows.first_scored)
            for name, decoder in decoders.items():
                logits = base_logits if name == BASE else _scored(decoder, hidden[name][i], windows.first_scored)
                sums[name].add(*divergence(base_logits, logits, targets))
    base_perplexity = sums.pop(BASE).perplexity
    return [s.evaluation(name, windows, base_perplexity) for name, s in sums.items()]


def _scored(decoder: Decoder, hidden: Tensor, first: int) -> Tensor:
    """Logits [n, vocabulary] at the positions whose predictions count."""
    return decoder.logits(hidden[None])[0, first:-1]


class _Sums:
    def __init__(self) -> None:
        self._nll: list[Tensor] = []
        self._kl: list[Tensor] = []
        self._same: list[Tensor] = []

    def add(self, nll: Tensor, kl: Tensor, same: Tensor) -> None:
        self._nll.append(nll.double().cpu())
        self._kl.append(kl.double().cpu())
        self._same.append(same.cpu())

    @property
    def perplexity(self) -> float:
        nll = torch.cat(self._nll)
        return perplexity(float(nll.sum()), nll.numel())

    def evaluation(self, variant: str, windows: Windows, base_perplexity: float) -> Evaluation:
        kl = torch.cat(self._kl)
        p99, p999 = torch.quantile(kl, torch.tensor([0.99, 0.999], dtype=torch.float64)).tolist()
        return Evaluation(
            variant=variant,
            protocol=windows.protocol,
            perplexity=self.perplexity,
            base_perplexity=base_perplexity,
            mean_kl=float(kl.mean()),
            p99_kl=p99,
            p999_kl=p999,
            max_kl=float(kl.max()),
            top1_agreement=float(torch.cat(self._same).double().mean()),
        )
