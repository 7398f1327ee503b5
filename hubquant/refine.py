"""After the pass: the scales of a variant asked again, by what the whole model makes of them.

Codes stay as the pass chose them. The scales of all the layers' linears change together, by gradients of the KL divergence from
the base, whose hidden states the pass has left behind. What is no better on windows that were not learned from is not kept.
(Scale-only distillation: EfficientQAT's end-to-end training of quantization parameters, Chen et al. 2024, arXiv 2407.11062,
section 3.3, with the base as the teacher.)
"""

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hubquant import memory
from hubquant.artifact import Artifact, Refinement, file_sha256
from hubquant.base import OpenBase, is_gguf
from hubquant.bookmark import Bookmark
from hubquant.errors import BadModel
from hubquant.formats.gguf.scales import GgufScales
from hubquant.formats.packedscales import PackedScales
from hubquant.formats.shards import sync
from hubquant.model.checkpoint import TensorSource
from hubquant.model.decoder import Decoder
from hubquant.model.hidden import Hidden, HiddenFile
from hubquant.recipe import HELD_OUT

LEARNING_RATE = 0.01  # of a step between two codes, by which scales may change in one step; a cosine leads it to 0
BETAS = (0.9, 0.99)
BATCH = 2048  # tokens that a step learns from, in whole windows
CHUNK = 128  # tokens whose logits are in memory at a time


class Scales(TensorSource, Protocol):
    """Weights that are computed from scales, which may be replaced."""

    scales: dict[str, Tensor]
    bits: dict[str, float]  # per weight, of those that the scales are of

    def write(self, scales: dict[str, Tensor]) -> list[Path]:
        """Into the files, in place; returns which. Doing so twice does it once."""


def refine_all(
    opened: OpenBase,
    decoder: Decoder,
    out: Path,
    tokens: Tensor,
    steps: int,
    bookmark: Bookmark,
    progress: Callable[[int, int], None],
) -> list[str]:
    """Refine, in place, what of the finished artifacts has scales; returns why others were left as they are.

    Goes on where `bookmark` stands, whose hidden states are those that the pass's `decoder` of the base left after its last layer
    for calibration `tokens` [n, window]: on a GPU they may be bfloat16's, while variants are run in float32. `progress` is called
    with (steps done, steps of all).
    """
    finished, notes = bookmark.standing.finished, []
    first = decoder.embed(tokens[:1])
    last = bookmark.hidden(len(decoder.layers))
    states = HiddenFile(last, (len(tokens), *first.shape[1:]), first.dtype, opened.device)
    for number, (name, artifact) in enumerate(finished.items()):

        def told(done: int, _: int = 0, before: int = number * steps) -> None:
            progress(before + done, steps * len(finished))

        if artifact.refinement is None:
            try:
                # nothing is saved but a success: it is what removes the scales that were found, also those of the next variant
                finished[name] = _refined(opened, out, artifact, states, tokens, steps, bookmark.folder, told)
                bookmark.save([])
            except BadModel as error:
                notes.append(f"{name} not refined: {error}")
            gc.collect()  # a decoder is a cycle, and holds the codes of a whole model here
            memory.trim()
        told(steps)
    return notes


def open_scales(out: Path, artifact: Artifact, device: torch.device) -> Scales:
    """The artifact on disk, with scales to be replaced."""
    path = artifact.path(out)
    return GgufScales(path, device) if is_gguf(path) else PackedScales(path, device)


def _refined(
    opened: OpenBase,
    out: Path,
    artifact: Artifact,
    states: Hidden,
    tokens: Tensor,
    steps: int,
    kept_in: Path,
    told: Callable[..., None],
) -> Artifact:
    """Raises BadModel: it has no scales, or nothing can be learned."""
    source = open_scales(out, artifact, opened.device)
    if not source.scales:
        raise BadModel("it has no scales")
    found = kept_in / f"{artifact.variant}.scales.safetensors"
    if not found.exists():
        base, own = opened.decoder(dtype=torch.float32), opened.decoder(source, torch.float32)
        try:
            scales, refinement = refine(base, states, own, source, tokens, steps, told)
        except RuntimeError as error:  # of memory too, or of a layer that has no gradients
            raise BadModel(str(error).splitlines()[0]) from error
        partial = found.with_name(f"{found.name}.part")
        save_file(scales, partial, {"refinement": refinement.model_dump_json()})
        sync(partial)
        partial.replace(found)
    return _applied(out, artifact, source, found)


def _applied(out: Path, artifact: Artifact, source: Scales, found: Path) -> Artifact:
    """With what was found, in place; after a kill it is done again, with the same bytes."""
    with safe_open(found, "pt") as file:
        refinement = Refinement.model_validate_json(file.metadata()["refinement"])
    if refinement.kept:
        for path in source.write(load_file(found)):
            sync(path)
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
    """Scales, rounded to float16, after so many steps of BATCH tokens, and what they brought on the windows held out.

    `states` [n, window, hidden]: of the base after its last layer, for `tokens` [n, window]; `decoder`: with weights from `source`.
    Windows whose states are not finite are left out. Raises BadModel if too few are left, and RuntimeError of torch.
    """
    sound = [number for number in range(len(tokens)) if bool(states[number : number + 1].isfinite().all())]
    held = sound[HELD_OUT - 1 :: HELD_OUT]
    learned = [number for number in sound if number not in held]
    if not held:
        raise BadModel(f"of {len(tokens)} calibration windows {len(sound)} are finite in the base; {HELD_OUT} are needed")
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

    def divergence(windows: list[int]) -> float:
        """Per token; its gradients, where they are wanted, are added to those of the changes."""
        hidden = tuple(embedded[window : window + 1] for window in windows)
        for index in range(len(decoder.layers)):
            hidden = checkpoint(decoder.run_with_gradients, index, windows, *hidden, use_reentrant=False)
        n = len(windows) * tokens.shape[1]
        sums = [_divergence(base, decoder, states[w : w + 1], own) for w, own in zip(windows, hidden, strict=True)]
        if torch.is_grad_enabled():
            torch.autograd.backward(hidden, [slope / n for _, slope in sums])
        return math.fsum(found for found, _ in sums) / n

    @torch.no_grad()
    def held_out() -> float:
        found = math.fsum(divergence([window]) for window in held) / len(held)
        source.release()
        return found

    with base.head(), decoder.head():
        before = held_out()
        for step in range(steps):
            while len(order) < batch:
                order += [learned[i] for i in torch.randperm(len(learned), generator=random).tolist()]
            source.scales = {name: scales * (1 + change[name]) for name, scales in initial.items()}
            divergence(order[:batch])
            del order[:batch]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            source.release()
            progress(step + 1, steps)
        with torch.no_grad():
            source.scales = {name: (scales * (1 + change[name])).half().float() for name, scales in initial.items()}
        after = held_out()
    if not math.isfinite(after):
        after = before  # and so nothing is kept
    scales = {name: values.cpu().contiguous() for name, values in source.scales.items()}
    return scales, Refinement(steps=steps, held_out_kl=(before, after))


def _divergence(base: Decoder, decoder: Decoder, teacher: Tensor, hidden: Tensor) -> tuple[float, Tensor]:
    """Σ over tokens of KL(base ‖ variant), in nats, from hidden states [1, window, hidden] after the last layers of both, and its
    gradient by `hidden` (zeros where none is wanted). Logits of CHUNK tokens are in memory at a time."""
    total, gradient = 0.0, torch.zeros_like(hidden)
    for at in range(0, hidden.shape[1], CHUNK):
        chunk = slice(at, at + CHUNK)
        own = hidden[:, chunk].detach().requires_grad_(torch.is_grad_enabled())
        wanted = torch.log_softmax(base.logits(teacher[:, chunk].to(base.dtype)), -1)
        found = (wanted.exp() * (wanted - torch.log_softmax(decoder.logits(own), -1))).sum()
        if torch.is_grad_enabled():
            gradient[:, chunk] = torch.autograd.grad(found, own)[0]
        total += float(found.detach())
        del wanted, found
        memory.trim()  # logits of some models are just too small for the C library to give them back by itself
    return total, gradient
