"""What the pass asks of a format: take each tensor once, in any order, and leave a finished folder."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from hubquant.artifact import Artifact
from hubquant.model.layer import Layer
from hubquant.recipe import Variant

# What JSON holds, and tensors and records among it (hubquant.bookmark); it comes back as JSON and tensors.
State = dict[str, Any]


def trials_folder(folder: Path, variant: Variant) -> Path:
    """Where a variant by sensitivity, which is written to `folder`, keeps all that it chooses from, until `discard`."""
    return folder / f"{variant.name}.trials"


class ArtifactWriter(Protocol):
    """One variant on its way to disk. Nothing has a final name before `finish`.

    Each of these raises BadModel for what the format cannot hold; the variant is given up then, and the others are made.
    """

    variant: Variant
    packs_head: bool  # whether the head, where it is a linear of its own, is to come as a layer too

    def add_outside(self, name: str, tensor: Tensor) -> None:
        """A parameter outside the decoder layers (embeddings, final norm, head), float32, by its full name."""

    def add_layer(self, layer: Layer) -> None:
        """Solve and store one decoder layer."""

    def state(self) -> State:
        """What another process needs to go on here; returns when the disk has what was written so far."""

    def restore(self, state: State) -> None:
        """Go on where a writer of the same arguments stood, on the files it left; what it wrote since then is overwritten."""

    def finish(self) -> Artifact:
        """May be repeated after a kill at any moment, until `discard`."""

    def discard(self) -> None:
        """Remove what is no part of a finished artifact."""
