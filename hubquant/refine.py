"""After the pass: the scales of a variant asked again, by what the whole model makes of them.

Codes stay as the pass chose them. The scales of all linears change together, by gradients of the KL divergence from the base, whose
hidden states the pass has left behind. What is no better on windows that were not learned from is not kept. (Scale-only
distillation: EfficientQAT's end-to-end training of quantization parameters, Chen et al. 2024, arXiv 2407.11062, section 3.3, with
the base as the teacher.)
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hubquant.artifact import Artifact, Refinement, file_sha256
from hubquant.base import OpenBase
from hubquant.bookmark import Bookmark
from hubquant.errors import BadModel
from hubquant.formats.gguf.scales import GgufScales
from hubquant.formats.packedscales import PackedScales
from hubquant.model.checkpoint import TensorSource
from hubquant.model.decoder import Decoder
from hubquant.model.hidden import Hidden, HiddenFile
from hubquant.recipe import HELD_OUT, variant

LEARNING_RATE = 0.01  # of a step between two codes, by which scales may change in one step; a cosine leads it to 0
BETAS = (0.9, 0.99)
BATCH = 2048  # tokens that a step learns from, in whole windows
CHUNK = 128  # tokens whose logits are in memory at a time


class Scales(TensorSource, Protocol):
    """Weights that are computed from scales, which may be replaced."""

    scales: dict[str, Tensor]
    bits: dict[str, float]  # per weight, of those that the scales are of

    def write(self, scales: dict[str, Tensor]) -> None: ...


def refine_all(
    opened: OpenBase, out: Path, tokens: Tensor, steps: int, bookmark: Bookmark, progress: Callable[[int, int], None]
) -> list[str]:
    """Refine, in place, what of the finished artifacts has scales; returns why others were left as they are.

    Goes on where `bookmark` stands, whose hidden states are the base's, after its last layer, for calibration `tokens` [n, window].
    `progress` is called with (steps done, steps of all).
    """
    finished, notes = bookmark.standing.finished, []
    base = opened.decoder(dtype=torch.float32)
    first = base.embed(tokens[:1])
    last = bookmark.hidden(len(base.layers))
    states = HiddenFile(last, (len(tokens), *first.shape[1:]), opened.decoder().dtype, opened.device)
    for number, (name, artifact) in enumerate(finished.items()):
        if artifact.refinement is not None:
            continue

        def told(done: int, _: int, before: int = number * steps) -> None:
            progress(before + done, steps * len(finished))

        try:
            source = _scales(out, artifact, opened.device)
            if not source.scales:
                notes.append(f"{name} not refined: it has no scales")
                continue
            found = bookmark.folder / f"{name}.scales.safetensors"
            if not found.exists():
                scales, refinement = refine(base, states, opened.decoder(source, torch.float32), source, tokens, steps, told)
                partial = found.with_name(f"{found.name}.part")
                save_file(scales, partial, {"refinement": refinement.model_dump_json()})
                partial.replace(found)
            finished[name] = _applied(out, artifact, source, found)
        except BadModel as error:
            notes.append(f"{name} not refined: {error}")
        bookmark.save([])
    return notes


def _scales(out: Path, artifact: Artifact, device: torch.device) -> Scales:
    folder = out / artifact.folder
    if variant(artifact.variant).format == "gguf":
        return GgufScales(folder / artifact.main_file, device)
    return PackedScales(folder, device)


def _applied(out: Path, artifact: Artifact, source: Scales, found: Path) -> Artifact:
    """With what was found, in place; after a kill it is done again, with the same bytes."""
    with safe_open(found, "pt") as file:
        refinement = Refinement.model_validate_json(file.metadata()["refinement"])
    if refinement.kept:
        source.write(load_file(found))
    files = {name: file_sha256(out / artifact.folder / name) for name in artifact.files}
    return artifact.model_copy(update={"files": files, "refinement": refinement})


def refine(
    base: Decoder,
    states: Hidden,
    decoder: Decoder,
    source: Scales,
    tokens: Tensor,
    steps: int,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Tensor], Refinement]:
    """Scales, rounded to float16, after so many steps of one window each, and what they brought on the windows held out.

    `states` [n, window, hidden]: of the base after its last layer, for `tokens` [n, window]; `decoder`: with weights from `source`.
    """
    held = range(HELD_OUT - 1, len(tokens), HELD_OUT)
    learned = [number for number in range(len(tokens)) if number not in held]
    embedded = decoder.embed(tokens)
    initial = source.scales
    change = {name: torch.zeros_like(scales, requires_grad=True) for name, scales in initial.items()}
    by_bits: dict[float, list[Tensor]] = {}
    for name, own in change.items():
        by_bits.setdefault(source.bits[name], []).append(own)
    groups = [{"params": own, "lr": LEARNING_RATE * 2**-bits} for bits, own in by_bits.items()]
    optimizer = torch.optim.Adam(groups, betas=BETAS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random = torch.Generator().manual_seed(0)
    order: list[int] = []
    batch = min(-(-BATCH // tokens.shape[1]), len(learned))

    def divergence(windows: list[int]) -> Tensor:
        hidden = tuple(embedded[window : window + 1] for window in windows)
        for index in range(len(decoder.layers)):
            hidden = checkpoint(decoder.differentiable, index, windows, *hidden, use_reentrant=False)
        parts = [
            checkpoint(
                _divergence, base, decoder, states[w : w + 1][:, at : at + CHUNK], own[:, at : at + CHUNK], use_reentrant=False
            )
            for w, own in zip(windows, hidden, strict=True)
            for at in range(0, own.shape[1], CHUNK)
        ]
        return torch.stack(parts).sum() / (len(windows) * tokens.shape[1])

    @torch.no_grad()
    def held_out() -> float:
        return math.fsum(float(divergence([window])) for window in held) / len(held)

    with base.head(), decoder.head():
        before = held_out()
        for step in range(steps):
            while len(order) < batch:
                order += [learned[i] for i in torch.randperm(len(learned), generator=random).tolist()]
            source.scales = {name: scales * (1 + change[name]) for name, scales in initial.items()}
            divergence(order[:batch]).backward()
            del order[:batch]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            progress(step + 1, steps)
        with torch.no_grad():
            source.scales = {name: (scales * (1 + change[name])).half().float() for name, scales in initial.items()}
        after = held_out()
    scales = {name: values.cpu().contiguous() for name, values in source.scales.items()}
    return scales, Refinement(steps=steps, held_out_kl=(before, after))


def _divergence(base: Decoder, decoder: Decoder, teacher: Tensor, hidden: Tensor) -> Tensor:
    """Σ over tokens of KL(base ‖ variant), in nats, from hidden states [1, n, hidden] after the last layers of both."""
    wanted = torch.log_softmax(base.logits(teacher.to(base.dtype)), -1)
    return (wanted.exp() * (wanted - torch.log_softmax(decoder.logits(hidden), -1))).sum()
