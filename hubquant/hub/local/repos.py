"""Repositories: names, visibility, access and refs. The commits behind the refs are in commits.py."""

import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from hubquant.hub.local.accounts import Caller
from hubquant.hub.local.answers import Refusal, bad_request, forbidden, gated, repo_not_found, sign_in_first
from hubquant.hub.local.storage import Store

TYPES = ("model", "dataset", "space", "kernel")
URL_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/", "kernel": "kernels/"}
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")

Gate = Literal["auto", "manual", False]
AccessStatus = Literal["pending", "accepted", "rejected"]


@dataclass
class Repo:
    """repo.json and refs.json of one repo. `key` never changes, `id` may. Change and save only within `changing()`."""

    key: str
    type: str
    id: str
    created_at: str
    private: bool = False
    gated: Gate = False
    sdk: str | None = None
    downloads: int = 0
    likes: list[str] = field(default_factory=list)  # user names
    former_ids: list[str] = field(default_factory=list)
    access: dict[str, dict[str, str]] = field(default_factory=dict)  # user name → {"id", "status", "timestamp"}
    refs: dict[str, str] = field(default_factory=dict)  # full ref name → commit oid
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    deleted: bool = False

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]

    @property
    def url_path(self) -> str:
        return URL_PREFIX[self.type] + self.id

    @property
    def api_path(self) -> str:
        return f"api/{self.type}s/{self.id}"

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Held while the repo's records change. Raises Refusal RepoNotFound if it was deleted meanwhile."""
        with self.lock:
            if self.deleted:
                raise Refusal(404, "Repository not found", "RepoNotFound")
            yield

    def record(self) -> dict[str, Any]:
        """What repo.json holds."""
        kept = {f.name for f in fields(self)} - {"refs", "lock", "deleted"}
        return {name: getattr(self, name) for name in kept}

    def readable_by(self, caller: Caller) -> bool:
        return not self.private or caller.member_of(self.namespace)

    def writable_by(self, caller: Caller) -> bool:
        return caller.can_write and caller.member_of(self.namespace)

    def content_open_to(self, caller: Caller) -> bool:
        if not self.gated or caller.member_of(self.namespace):
            return True
        return caller.name is not None and self.access.get(caller.name, {}).get("status") == "accepted"


def check_name(name: str) -> None:
    """Raises Refusal 400 for a repo name that the Hub does not allow."""
    if not NAME.fullmatch(name) or len(name) > 96:
        raise bad_request(
            f'Repo name "{name}" must use letters, digits, "-", "_" or ".", at most 96, not starting or ending with "-" or "."'
        )
    if "--" in name or ".." in name or name.endswith((".git", ".ipynb")):
        raise bad_request(f'Repo name "{name}" cannot contain "--" or ".." nor end with ".git" or ".ipynb"')


class Repos:
    """All repos of one Hub, by type and name (case-insensitive, former names included)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._index_lock = threading.Lock()
        self._by_key: dict[str, Repo] = {}
        for folder in store.repos.iterdir():
            repo = Repo(**json.loads((folder / "repo.json").read_bytes()))
            repo.refs = json.loads((folder / "refs.json").read_bytes())
            self._by_key[repo.key] = repo

    def __iter__(self) -> Iterator[Repo]:
        return iter(list(self._by_key.values()))

    def folder(self, repo: Repo) -> Path:
        return self._store.repos / repo.key

    def find(self, type_: str, repo_id: str) -> Repo | None:
        wanted = repo_id.lower()
        same_type = [repo for repo in self if repo.type == type_]
        now_called = next((repo for repo in same_type if repo.id.lower() == wanted), None)
        return now_called or next((repo for repo in same_type if wanted in repo.former_ids), None)

    def get(self, type_: str, repo_id: str, caller: Caller) -> Repo:
        """Raises Refusal RepoNotFound if it does not exist or the caller may not know that it does."""
        repo = self.find(type_, repo_id)
        if repo is None or not repo.readable_by(caller):
            raise repo_not_found(caller)
        return repo

    def get_content(self, type_: str, repo_id: str, caller: Caller) -> Repo:
        """For reading files: also raises GatedRepo."""
        repo = self.get(type_, repo_id, caller)
        if not repo.content_open_to(caller):
            raise gated(caller, repo.type, repo.id)
        return repo

    def get_writable(self, type_: str, repo_id: str, caller: Caller) -> Repo:
        """Raises 401 for the anonymous, 403 without the right to write."""
        repo = self.get(type_, repo_id, caller)
        if caller.anonymous:
            raise sign_in_first()
        if not repo.writable_by(caller):
            raise forbidden(f"You don't have the rights to write to {repo.type} {repo.id} with this token")
        return repo

    def create(self, repo: Repo, first_files: Callable[[Path], dict[str, str]]) -> None:
        """Make a repo appear with all its files at once. `first_files(folder)` writes its first commit there and returns the refs.

        Raises Refusal 409 if the name is taken; the client wants the address of the existing repo in its body.
        """
        folder = self._store.new_temp_path()
        repo.refs = first_files(folder)
        self._store.write_json(folder / "repo.json", repo.record())
        self._store.write_json(folder / "refs.json", repo.refs)
        with self._index_lock:
            taken = self.find(repo.type, repo.id)
            if taken is not None and taken.id.lower() == repo.id.lower():
                self._store.discard(folder)
                raise Refusal(409, f"You already created this {repo.type} repo")
            folder.replace(self.folder(repo))
            self._by_key[repo.key] = repo

    def delete(self, repo: Repo) -> None:
        with repo.changing(), self._index_lock:
            repo.deleted = True
            self._by_key.pop(repo.key, None)
            self._store.discard(self.folder(repo))

    def move(self, repo: Repo, new_id: str) -> None:
        """Raises Refusal 409 if the new name is taken. The old name goes on leading here until another repo takes it."""
        with repo.changing(), self._index_lock:
            taken = self.find(repo.type, new_id)
            if taken is not None and taken is not repo and taken.id.lower() == new_id.lower():
                raise Refusal(409, f"A {repo.type} repository called {taken.id} already exists")
            former_ids = [name for name in [*repo.former_ids, repo.id.lower()] if name != new_id.lower()]
            self._write(repo, {"id": new_id, "former_ids": former_ids})

    def update(self, repo: Repo, **changes: Any) -> None:
        """Change fields of repo.json, on disk first."""
        with repo.changing():
            self._write(repo, changes)

    def _write(self, repo: Repo, changes: dict[str, Any]) -> None:
        self._store.write_json(self.folder(repo) / "repo.json", {**repo.record(), **changes})
        for name, value in changes.items():
            setattr(repo, name, value)

    def set_refs(self, repo: Repo, changes: dict[str, str | None]) -> None:
        """Point refs at commits (None removes one), all of them at once. Everything they point at must be on disk already."""
        refs = {name: oid for name, oid in {**repo.refs, **changes}.items() if oid is not None}
        self._store.write_json(self.folder(repo) / "refs.json", refs)
        repo.refs = refs


def new_key() -> str:
    """24 hex digits, as the Hub's object ids."""
    return secrets.token_hex(12)
