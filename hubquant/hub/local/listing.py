"""Which repos a listing shows, in which order, and cursors that survive changes between two pages."""

import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hubquant.hub.local.accounts import Caller
from hubquant.hub.local.answers import bad_request
from hubquant.hub.local.commits import MAIN
from hubquant.hub.local.repos import Repo
from hubquant.hub.local.state import HubState

SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[KMBT]?)", re.IGNORECASE)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
GGUF_APPS = frozenset(
    {"llama.cpp", "ollama", "lmstudio", "jan", "koboldcpp", "llama-cpp-python", "node-llama-cpp", "docker-model-runner"}
)


@dataclass(frozen=True)
class Query:
    """What `list_models` and its kin can ask for. `parameters`: lowest and highest count."""

    type: str
    tags: Sequence[str] = ()
    author: str | None = None
    search: str | None = None
    pipeline: str | None = None
    gated: bool | None = None
    parameters: tuple[float, float] | None = None
    apps: Sequence[str] = field(default=())


def parse_sizes(text: str) -> tuple[float, float]:
    """ "min:6B,max:128B" → (6e9, 128e9); either may be missing."""
    bounds = {"min": 0.0, "max": float("inf")}
    for item in text.split(","):
        name, _, value = item.strip().partition(":")
        match = SIZE.fullmatch(value)
        if name not in bounds or match is None:
            raise bad_request(f'"num_parameters" must look like min:6B,max:128B, not {text!r}')
        bounds[name] = float(match["number"]) * UNITS[match["unit"].upper()]
    return bounds["min"], bounds["max"]


def shows(hub: HubState, query: Query, repo: Repo, who: Caller) -> bool:
    if repo.type != query.type or not repo.readable_by(who):
        return False
    if query.author is not None and repo.namespace.lower() != query.author.lower():
        return False
    if query.search is not None and not all(word in repo.id.lower() for word in query.search.lower().split()):
        return False
    if query.gated is not None and bool(repo.gated) != query.gated:
        return False
    derived = hub.infos.derived(repo)
    if query.pipeline is not None and derived.pipeline != query.pipeline:
        return False
    tags = {tag.lower() for tag in derived.tags}
    if not all(tag.lower() in tags for tag in query.tags):
        return False
    if not all(("gguf" if app in GGUF_APPS else "safetensors") in tags for app in query.apps):
        return False
    if query.parameters is not None:
        total = (derived.safetensors or derived.gguf or {}).get("total")
        return total is not None and query.parameters[0] <= total <= query.parameters[1]
    return True


def _last_modified(hub: HubState, repo: Repo) -> str:
    return hub.commits.get(repo, repo.refs[MAIN]).date


SORT_KEYS: dict[str, Callable[[HubState, Repo], Any]] = {
    "createdAt": lambda hub, repo: repo.created_at,
    "lastModified": _last_modified,
    "downloads": lambda hub, repo: repo.downloads,
    "likes": lambda hub, repo: len(repo.likes),
    "trendingScore": lambda hub, repo: len(repo.likes),
}


def page(hub: HubState, query: Query, who: Caller, sort: str, size: int, cursor: str | None) -> tuple[list[Repo], str | None]:
    """The repos of one page, highest sort key first, and the cursor of the next page."""
    key = SORT_KEYS.get(sort)
    if key is None:
        raise bad_request(f'"sort" must be one of {", ".join(SORT_KEYS)}, not {sort!r}')
    ranked = sorted(
        ((key(hub, repo), repo.created_at, repo.key, repo) for repo in hub.repos if shows(hub, query, repo, who)), reverse=True
    )
    if cursor is not None:
        last = decode_cursor(cursor, length=3)
        try:
            ranked = [row for row in ranked if list(row[:3]) < last]
        except TypeError:
            raise bad_request("Invalid cursor") from None
    shown = ranked[:size]
    more = len(ranked) > size
    return [row[3] for row in shown], encode_cursor(shown[-1][:3]) if more and shown else None


def encode_cursor(values: Iterable[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(values)).encode()).decode()


def decode_cursor(cursor: str, length: int) -> list[Any]:
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor))
    except ValueError:
        values = None
    if not isinstance(values, list) or len(values) != length:
        raise bad_request("Invalid cursor")
    return values
