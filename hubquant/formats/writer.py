"""What the pass asks of a format: take each tensor once, in any order, and leave a finished folder."""

from typing import Protocol

from torch import Tensor

from hubquant.artifact import Artifact
from hubquant.model.layer import Layer
from hubquant.recipe import Variant


class ArtifactWriter(Protocol):
    """One variant on its way to disk. Nothing has a final name before `finish`.

    Each of these raises BadModel for what the format cannot hold; the variant is given up then, and the others are made.
    """

    variant: Variant

    def add_outside(self, name: str, tensor: Tensor) -> None:
        """A parameter outside the decoder layers (embeddings, final norm, head), float32, by its full name."""

    def add_layer(self, layer: Layer) -> None:
        """Solve and store one decoder layer."""

    def finish(self) -> Artifact: ...

    def discard(self) -> None:
        """Remove what was written so far; nothing after `finish`."""
