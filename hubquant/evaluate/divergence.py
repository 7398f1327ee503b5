"""Base and variants side by side over the same windows, one decoder layer of each in memory at a time."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hubquant_kernels.divergence import divergence
from torch import Tensor

from hubquant.artifact import Evaluation
from hubquant.evaluate.perplexity import Windows, perplexity
from hubquant.model.decoder import Decoder
from hubquant.model.hidden import Hidden

BASE = ""


def compare(
    base: Decoder,
    variants: Mapping[str, Decoder],
    windows: Windows,
    progress: Callable[[int, int], None],
    folder: Path | None = None,
) -> list[Evaluation]:
    """One Evaluation per variant, in their order. The base's layers run once for all of them.

    `progress` is called with (layers done, layers). Hidden states lie in files meanwhile: in `folder`, made and removed, or where
    temporary files go.
    """
    decoders = {BASE: base, **variants}
    n_layers = len(base.layers)
    with _made(folder) as scratch:
        places = {name: scratch / str(number) for number, name in enumerate(decoders)}
        hidden = {name: decoder.embed_to(windows.tokens, places[name]) for name, decoder in decoders.items()}
        for index in range(n_layers):
            for name, decoder in decoders.items():
                with decoder.layer(index) as layer:
                    decoder.run(index, layer, hidden[name])
            progress(index + 1, n_layers)
        return _score(decoders, hidden, windows)


@contextmanager
def _made(folder: Path | None) -> Iterator[Path]:
    """Without what a killed process left in it."""
    if folder is None:
        with TemporaryDirectory(prefix="hubquant-") as made:
            yield Path(made)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@torch.no_grad()
def _score(decoders: Mapping[str, Decoder], hidden: Mapping[str, Hidden], windows: Windows) -> list[Evaluation]:
    """Two heads are in memory at a time: with the base's logits anew for each variant, which take less than one of its layers."""
    sums = {name: _Sums() for name in decoders}
    for name in decoders:
        with decoders[BASE].head(), decoders[name].head() if name != BASE else nullcontext():
            for i, tokens in enumerate(windows.tokens):
                targets = tokens[windows.first_scored + 1 :].to(decoders[BASE].device)
                base_logits = _scored(decoders[BASE], hidden[BASE][i : i + 1], windows.first_scored)
                own = base_logits if name == BASE else _scored(decoders[name], hidden[name][i : i + 1], windows.first_scored)
                sums[name].add(*divergence(base_logits, own, targets))
    base_perplexity = sums.pop(BASE).perplexity
    return [s.evaluation(name, windows, base_perplexity) for name, s in sums.items()]


def _scored(decoder: Decoder, hidden: Tensor, first: int) -> Tensor:
    """Logits [n, vocabulary] at the positions whose predictions count."""
    return decoder.logits(hidden)[0, first:-1]


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
