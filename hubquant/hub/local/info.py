"""What the Hub says about a repo: the JSON of `model_info` and of the listing."""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from hubquant.hub.local.answers import bad_request
from hubquant.hub.local.commits import MAIN, Commit, Commits, Entry, lfs_pointer
from hubquant.hub.local.derived import Derived, derive
from hubquant.hub.local.repos import Repo, Repos
from hubquant.hub.local.storage import Store

LIST_KEYS = ("likes", "trendingScore", "private", "downloads", "tags", "pipeline_tag", "library_name", "createdAt")
FULL_KEYS = (*LIST_KEYS, "author", "gated", "disabled", "lastModified", "sha", "siblings")
INFO_KEYS = (
    *FULL_KEYS, "cardData", "config", "safetensors", "gguf", "usedStorage", "baseModels", "childrenModelCount", "model-index",
    "spaces", "transformersInfo", "sdk",
)  # fmt: skip
# valid for `expand`, and this Hub has nothing to say about them
UNKNOWN_KEYS = (
    "downloadsAllTime", "evalResults", "inference", "inferenceProviderMapping", "mask_token", "resourceGroup", "widgetData",
    "citation", "description", "mainSize", "paperswithcode_id", "runtime", "subdomain", "host", "models", "datasets", "region",
)  # fmt: skip


def lfs_fields(entry: Entry, digest_key: str) -> dict[str, Any]:
    return {digest_key: entry.sha256, "size": entry.size, "pointerSize": len(lfs_pointer(entry.sha256, entry.size))}


class Infos:
    """Builds info records; what follows from a commit is computed once."""

    def __init__(self, store: Store, repos: Repos, commits: Commits) -> None:
        self._store = store
        self._repos = repos
        self._commits = commits
        self._derive = lru_cache(maxsize=2048)(self._derive_from_disk)

    def _derive_from_disk(self, repo_key: str, commit: str) -> Derived:
        return derive(self._store, self._commits.read(repo_key, commit))

    def derived(self, repo: Repo, commit: Commit | None = None) -> Derived:
        return self._derive(repo.key, commit.oid if commit else repo.refs[MAIN])

    def build(self, repo: Repo, commit: Commit, keys: Iterable[str], *, blobs: bool = False) -> dict[str, Any]:
        """id, _id and the named keys; what is unknown or does not apply is left out.

        Raises Refusal 400 for a key the Hub does not have.
        """
        record: dict[str, Any] = {"_id": repo.key, "id": repo.id}
        if repo.type == "model":
            record["modelId"] = repo.id
        for key in keys:
            if key in UNKNOWN_KEYS:
                continue
            if key not in INFO_KEYS:
                raise bad_request(f'"expand" must be one of [{", ".join((*INFO_KEYS, *UNKNOWN_KEYS))}], not "{key}"')
            value = self._value(repo, commit, key, blobs)
            if value is not None:
                record[key] = value
        return record

    def _value(self, repo: Repo, commit: Commit, key: str, blobs: bool) -> Any:
        match key:
            case "author":
                return repo.namespace
            case "private" | "gated" | "downloads" | "sdk":
                return getattr(repo, key)
            case "disabled":
                return False
            case "likes" | "trendingScore":
                return len(repo.likes)
            case "createdAt":
                return repo.created_at
            case "lastModified":
                return self._commits.get(repo, repo.refs[MAIN]).date
            case "sha":
                return commit.oid
            case "siblings":
                return [_sibling(path, entry, blobs) for path, entry in commit.files.items()]
            case "usedStorage":
                return sum(size for size in {entry.sha256: entry.size for entry in commit.files.values()}.values())
            case "spaces":
                return [] if repo.type == "model" else None
            case "childrenModelCount":
                return self._children(repo) if repo.type == "model" else None
        return _derived_value(self.derived(repo, commit), key)

    def _children(self, repo: Repo) -> dict[str, int]:
        """Public models whose card names this one as their base, by relation."""
        counts: Counter[str] = Counter()
        for other in self._repos:
            if other.type == "model" and not other.private:
                derived = self.derived(other)
                if derived.relation and repo.id.lower() in (base.lower() for base in derived.base_models):
                    counts[derived.relation] += 1
        return dict(counts)


def _derived_value(derived: Derived, key: str) -> Any:
    match key:
        case "tags":
            return list(derived.tags)
        case "cardData":
            return derived.card
        case "config" | "safetensors" | "gguf":
            return getattr(derived, key)
        case "pipeline_tag":
            return derived.pipeline
        case "library_name":
            return derived.library
        case "model-index":
            return derived.card.get("model-index")
        case "transformersInfo" if derived.library == "transformers" and derived.pipeline == "text-generation":
            return {"auto_model": "AutoModelForCausalLM", "pipeline_tag": "text-generation", "processor": "AutoTokenizer"}
        case "baseModels" if derived.base_models:
            return {"relation": derived.relation, "models": [{"id": base} for base in derived.base_models]}
    return None


def _sibling(path: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    sibling: dict[str, Any] = {"rfilename": path, "size": entry.size, "blobId": entry.oid}
    if entry.lfs:
        sibling["lfs"] = lfs_fields(entry, "sha256")
    return sibling
