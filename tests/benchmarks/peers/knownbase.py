"""The base in front of many evaluations: its hidden states after the last layer are kept, so that it runs once for all of them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hubquant.artifact import file_sha256
from hubquant.base import OpenBase
from hubquant.model.decoder import Decoder


class KnownBase(Decoder):
    """A Decoder whose layers run only if `folder` does not hold what comes out of them for these windows and weights."""

    def __init__(self, opened: OpenBase, model: Path, folder: Path) -> None:
        super().__init__(opened.config, opened.weights, opened.device, torch.float32)
        self._digest = hashlib.sha256("".join(file_sha256(f) for f in sorted(model.glob("*.safetensors"))).encode())
        self._folder = folder
        self._kept = folder
        self._known = False

    def embed(self, windows: Tensor) -> Tensor:
        """As of any decoder; if what follows is known, that at once."""
        digest = self._digest.copy()
        digest.update(windows.numpy().tobytes())
        self._kept = self._folder / f"base-{digest.hexdigest()[:16]}.safetensors"
        self._known = self._kept.exists()
        return load_file(self._kept)["hidden"].to(self.device) if self._known else super().embed(windows)

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        if self._known:
            yield self.layers[index]
            return
        with super().layer(index) as layer:
            yield layer

    @torch.no_grad()
    def run(self, index: int, layer: nn.Module, hidden: Tensor) -> Tensor:
        if self._known:
            return hidden
        result = super().run(index, layer, hidden)
        if index == len(self.layers) - 1:
            partial = self._kept.with_suffix(".part")
            save_file({"hidden": result.cpu()}, partial)
            partial.replace(self._kept)
        return result
