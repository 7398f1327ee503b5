"""New and changed models of the organisations, tags and models that are watched; what was already looked at is remembered."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ValidationError

from hubquant import __version__
from hubquant.config import Settings, Watch
from hubquant.errors import RepoGone

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

    from hubquant.hub.client import Hub

# The Hub's listing lags and its clock is not ours: each poll looks this far behind the newest model it has seen.
OVERLAP = timedelta(hours=1)
OUR_TAGS = frozenset({"hubquant", "quantized"})  # of the repos that hubquant publishes
EXPAND = ["createdAt", "lastModified", "sha", "tags", "gated", "private", "disabled", "safetensors", "library_name", "pipeline_tag"]
Order = Literal["created_at", "last_modified"]
ORDERS: tuple[Order, ...] = ("created_at", "last_modified")


class Marks(BaseModel):
    """How far the watcher has looked. `newest` per listing; `seen`: repo → sha of the commit last decided on for good, kept
    while the listings still show it; `waiting`: repos whose decision was put off."""

    key: str = ""
    newest: dict[str, datetime] = {}
    seen: dict[str, str] = {}
    waiting: set[str] = set()

    @classmethod
    def read(cls, settings: Settings) -> Self:
        """Those of the state folder; fresh ones if what to watch, admit or make has changed since, or hubquant has."""
        parts = [settings.watch, settings.policy, settings.recipe]
        described = [__version__, settings.publish.namespace, *(part.model_dump(mode="json") for part in parts)]
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        with suppress(FileNotFoundError, ValidationError):
            marks = cls.model_validate_json(_file(settings).read_bytes())
            if marks.key == key:
                return marks
        return cls(key=key)

    def write(self, settings: Settings) -> None:
        file = _file(settings)
        partial = file.with_suffix(".partial")
        partial.write_text(self.model_dump_json())
        partial.replace(file)

    def decided(self, info: "ModelInfo", later: bool) -> None:
        """Remembers that this commit of the model needs no second look, or (`later`) that it needs one at the next poll."""
        if later:
            self.waiting.add(info.id)
            return
        self.waiting.discard(info.id)
        if info.sha:
            self.seen[info.id] = info.sha


def candidates(hub: "Hub", watch: Watch, marks: Marks) -> Iterator["ModelInfo"]:
    """Every model once that is new or has a commit not yet decided on.

    Passed over: a model named in `watch.models` that the Hub does not have (yet), and what hubquant itself has published. The
    caller tells `marks.decided` of each, and writes the marks when the iterator is exhausted.
    """
    listed: set[str] = set()
    for info in chain(_listed(hub, watch, marks), _named(hub, watch.models), _named(hub, sorted(marks.waiting))):
        seen = info.sha and marks.seen.get(info.id) == info.sha
        if info.id not in listed and not seen and not OUR_TAGS.issubset(info.tags or ()):
            yield info
        listed.add(info.id)
    marks.seen = {repo_id: sha for repo_id, sha in marks.seen.items() if repo_id in listed}
    marks.waiting &= listed


def _named(hub: "Hub", repo_ids: Iterable[str]) -> Iterator["ModelInfo"]:
    for repo_id in repo_ids:
        with suppress(RepoGone):
            yield hub.model_info(repo_id)


def _listed(hub: "Hub", watch: Watch, marks: Marks) -> Iterator["ModelInfo"]:
    start = datetime.now(UTC) - timedelta(days=watch.lookback_days)
    for organisation in watch.organisations:
        for order in ORDERS:
            yield from _since(hub, f"organisation {organisation} {order}", order, start, marks, author=organisation)
    for tag in watch.tags:
        for order in ORDERS:
            yield from _since(hub, f"tag {tag} {order}", order, start, marks, filter=tag)


def _since(hub: "Hub", listing: str, order: Order, start: datetime, marks: Marks, **query: str) -> Iterator["ModelInfo"]:
    """The listing, newest first, down to its mark minus the overlap; down to `start` the first time."""
    mark = marks.newest.get(listing)
    oldest = start if mark is None else mark - OVERLAP
    newest = mark or start
    for info in hub.list_models(sort=order, expand=EXPAND, **query):
        moment = getattr(info, order) or datetime.min.replace(tzinfo=UTC)
        if moment < oldest:
            break
        newest = max(newest, moment)
        yield info
    marks.newest[listing] = newest


def _file(settings: Settings) -> Path:
    return settings.state / "watch.json"
