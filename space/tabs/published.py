"""Tab "Published": every variant that the bot's account offers, as the Hub's manifests state it."""

from collections.abc import Callable, Iterable

from cached import Cached
from view import render

from hubquant.artifact import Artifact, Base, Evaluation, Protocol
from hubquant.console import METRICS, metrics, protocol_line
from hubquant.errors import HubquantError, HubUnavailable
from hubquant.hub.client import Hub
from hubquant.hub.manifest import NAME, Manifest
from hubquant.recipe import VARIANTS, Frozen

TAG = "hubquant"
NEWEST = 100  # repos
FRESH_SECONDS = 15.0


class Row(Frozen):
    """One published variant."""

    repo_id: str
    artifact: Artifact
    evaluation: Evaluation | None


class Family(Frozen):
    """All published variants of one base model."""

    base: Base
    rows: tuple[Row, ...]

    @property
    def protocols(self) -> list[Protocol]:
        return list(dict.fromkeys(row.evaluation.protocol for row in self.rows if row.evaluation))


class Published(Frozen):
    """`problems`: a sentence for each repo whose manifest cannot be used."""

    families: tuple[Family, ...]
    problems: tuple[str, ...]


class Shelf:
    """What a namespace has published. A manifest is read once per commit."""

    def __init__(self, hub: Hub, namespace: str) -> None:
        self.hub = hub
        self.namespace = namespace
        self._manifests: dict[tuple[str, str], Manifest | None] = {}

    def read(self) -> Published:
        """The newest first. Raises HubUnavailable, HubError."""
        families: dict[str, list[tuple[Base, Row]]] = {}
        problems = []
        listing = self.hub.list_models(author=self.namespace, filter=TAG, sort="last_modified", limit=NEWEST, expand=["sha"])
        for info in listing:
            try:
                manifest = self._manifest(info.id, info.sha or "main")
            except HubUnavailable:
                raise
            except HubquantError as error:
                problems.append(str(error))
                continue
            if manifest is None:
                continue
            for artifact in manifest.artifacts:
                row = Row(repo_id=info.id, artifact=artifact, evaluation=manifest.evaluation(artifact.variant))
                families.setdefault(manifest.base.repo_id, []).append((manifest.base, row))
        found = (Family(base=rows[0][0], rows=_ordered(row for _, row in rows)) for rows in families.values())
        return Published(families=tuple(found), problems=tuple(problems))

    def _manifest(self, repo_id: str, revision: str) -> Manifest | None:
        """None for a repo without one: somebody else's, under the same tag."""
        key = (repo_id, revision)
        if key not in self._manifests:
            text = self.hub.read_text(repo_id, NAME, revision)
            self._manifests[key] = None if text is None else Manifest.parse(text, repo_id)
        return self._manifests[key]


def _ordered(rows: Iterable[Row]) -> tuple[Row, ...]:
    """As the table of variants lists them; those of another version last."""
    known = list(VARIANTS)
    return tuple(sorted(rows, key=lambda row: known.index(row.artifact.variant) if row.artifact.variant in known else len(known)))


def tab(hub: Hub, namespace: str) -> Callable[[], str]:
    """What the tab shows, as a function that returns its HTML and never waits for the Hub."""
    published: Cached[Published] = Cached(Shelf(hub, namespace).read, FRESH_SECONDS)
    return lambda: show(published, hub.endpoint, namespace)


def show(published: Cached[Published], endpoint: str, namespace: str) -> str:
    answer = published.get()
    return render(
        "published",
        published=answer.value,
        error=answer.error,
        endpoint=endpoint,
        namespace=namespace,
        headings=METRICS,
        metrics=metrics,
        protocol_line=protocol_line,
    )
