"""Where a pass stands, on disk after every layer: one that was killed goes on there, and makes the same bytes.

A folder holds bookmark.json, the tensors that it refers to, and the hidden states that go into the next layer. The JSON names
the other files and is replaced last, in one step; what it does not name is not looked at here, and removed when it is written
(refine.py keeps what it has learned until then).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from hubquant.artifact import Artifact
from hubquant.formats.shards import sync
from hubquant.formats.writer import ArtifactWriter, State
from hubquant.model.hidden import HiddenFile
from hubquant.model.topology import Absorber, LayerInput

FOLDER = "bookmark"  # below the output folder
FILE = "bookmark.json"
TENSOR = "tensor"


@dataclass
class Standing:
    """Between two layers. `inputs`: by the first layer of each structure; `writers`: by variant, of those at work.

    `saves` counts how often this was written; `seconds` is what the pass has taken so far, and the peaks its largest ones, over all
    its processes.
    """

    next_layer: int = 0
    dropped_rows: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    peak_device_memory_bytes: int = 0
    saves: int = 0
    inputs: dict[int, list[LayerInput]] = field(default_factory=dict)
    writers: dict[str, State] = field(default_factory=dict)
    finished: dict[str, Artifact] = field(default_factory=dict)
    given_up: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> "Standing":
        values = {f.name: found[f.name] for f in fields(cls) if f.name in found}
        values["inputs"] = {int(first): [_input(i) for i in inputs] for first, inputs in found["inputs"].items()}
        values["finished"] = {name: Artifact.model_validate(artifact) for name, artifact in found["finished"].items()}
        return cls(**values)


class Bookmark:
    """`standing` is where the pass stood when it was last saved under `key`, the hash of all that decides its bytes.

    One process at a time has a bookmark open.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key = folder, key
        folder.mkdir(parents=True, exist_ok=True)
        self.standing = self._read()

    @property
    def begun(self) -> bool:
        return self.standing.saves > 0

    def hidden(self, layer: int) -> Path:
        """Where the hidden states lie that go into a layer."""
        return self.folder / f"hidden-{layer}"

    def opened(self, first: HiddenFile) -> HiddenFile:
        """The hidden states that go into the next layer; `first`: those that go into the first one."""
        layer = self.standing.next_layer
        return first.alike(self.hidden(layer)) if layer else first

    def save(self, writers: Sequence[ArtifactWriter], hidden: HiddenFile | None = None) -> None:
        """What `standing` says now, with the state of `writers` and the hidden states that go into its next layer."""
        standing = self.standing
        standing.writers = {writer.variant.name: writer.state() for writer in writers}
        standing.saves += 1
        if hidden is not None:
            hidden.sync()
        tensors = _Tensors()
        file = f"tensors-{standing.saves}.safetensors"
        text = json.dumps({"key": self._key, "tensors": file, **vars(standing)}, default=tensors.plain)
        save_file(tensors.found, self.folder / file)
        partial = self.folder / f"{FILE}.part"
        partial.write_text(text)
        for path in (self.folder / file, partial):
            sync(path)
        partial.replace(self.folder / FILE)
        self._remove_but({FILE, file, self.hidden(standing.next_layer).name})

    def remove(self) -> None:
        """When there is nothing to go on with."""
        self._remove_but(set())
        self.folder.rmdir()

    def _read(self) -> Standing:
        try:
            text = (self.folder / FILE).read_text()
        except FileNotFoundError:
            return Standing()
        found = json.loads(text)
        if found["key"] != self._key:
            self._remove_but(set())
            return Standing()
        tensors = load_file(self.folder / found["tensors"])
        return Standing.read(json.loads(text, object_hook=lambda o: tensors[o[TENSOR]] if o.keys() == {TENSOR} else o))

    def _remove_but(self, kept: set[str]) -> None:
        """The JSON first: it names the others."""
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name != FILE):
            if path.name not in kept:
                path.unlink()


class _Tensors:
    """The tensors met in a state, each once however often it is met."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self._kept: dict[int, tuple[Tensor, str]] = {}  # with the tensor, whose id is its own as long as it lives

    def plain(self, value: object) -> object:
        """What stands in the JSON for a value that it cannot hold."""
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json")
        if not isinstance(value, Tensor):
            return vars(value)
        if id(value) not in self._kept:
            name = str(len(self._kept))
            self._kept[id(value)] = value, name
            self.found[name] = value.cpu().contiguous().clone()
        return {TENSOR: self._kept[id(value)][1]}


def _input(found: Mapping[str, Any]) -> LayerInput:
    absorber = found["absorber"]
    return LayerInput(tuple(found["linears"]), Absorber(**absorber) if absorber else None, found["follows"])
