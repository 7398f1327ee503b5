"""Commits: a message, an author, parents, and the whole list of files. A commit is written first, then a ref is flipped to it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from hubquant.hub.local.answers import Refusal, bad_request, entry_not_found, revision_not_found, stale_parent
from hubquant.hub.local.repos import Repo, Repos
from hubquant.hub.local.storage import Blob, Store

MAIN = "refs/heads/main"


@dataclass(frozen=True)
class Entry:
    """One file. `oid`: git's blob id, of the content or, for an LFS file, of its pointer."""

    size: int
    sha256: str
    oid: str
    lfs: bool


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def regular_entry(content: bytes, blob: Blob) -> Entry:
    return Entry(blob.size, blob.sha256, git_blob_id(content), lfs=False)


def lfs_entry(blob: Blob) -> Entry:
    return Entry(blob.size, blob.sha256, git_blob_id(lfs_pointer(blob.sha256, blob.size)), lfs=True)


@dataclass(frozen=True)
class Commit:
    oid: str
    parents: tuple[str, ...]
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]

    @classmethod
    def make(cls, *, parents: Sequence[str], title: str, message: str, author: str, date: str, files: dict[str, Entry]) -> "Commit":
        unnamed = cls("", tuple(parents), title, message, author, date, dict(sorted(files.items())))
        canonical = json.dumps(asdict(unnamed), sort_keys=True, ensure_ascii=False).encode()
        oid = hashlib.sha1(canonical, usedforsecurity=False).hexdigest()
        return replace(unnamed, oid=oid)


@dataclass(frozen=True)
class Put:
    path: str
    entry: Entry


@dataclass(frozen=True)
class Remove:
    path: str
    folder: bool = False


Operation = Put | Remove


def check_path(path: str) -> None:
    """Raises Refusal 422 for a path that git could not hold."""
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") or part.lower() == ".git" for part in parts) or "\0" in path or len(path) > 4096:
        raise Refusal(422, f"Invalid path in repo: {path!r}")


def apply(files: dict[str, Entry], operations: Sequence[Operation]) -> dict[str, Entry]:
    """The files after the operations, in order.

    Raises Refusal EntryNotFound for a deletion of nothing, 400 where a file would be a folder, 422 for an impossible path.
    """
    after = dict(files)
    for operation in operations:
        check_path(operation.path)
        if isinstance(operation, Put):
            after[operation.path] = operation.entry
            continue
        gone = [path for path in after if path == operation.path and not operation.folder]
        if operation.folder:
            gone = [path for path in after if path.startswith(operation.path + "/")]
        if not gone:
            raise entry_not_found(f"A file with this name doesn't exist: {operation.path}")
        for path in gone:
            del after[path]
    folders = {path[:at] for path in after for at in range(len(path)) if path[at] == "/"}
    for path in folders & after.keys():
        raise bad_request(f"{path} cannot be both a file and a folder")
    return after


class Commits:
    """Reads and writes the commits of every repo; the last ones read stay in memory."""

    def __init__(self, store: Store, repos: Repos) -> None:
        self._store = store
        self._repos = repos
        self.read = lru_cache(maxsize=256)(self._read_from_disk)

    def get(self, repo: Repo, oid: str) -> Commit:
        return self.read(repo.key, oid)

    def _read_from_disk(self, repo_key: str, oid: str) -> Commit:
        try:
            record = json.loads((self._store.repos / repo_key / "commits" / f"{oid}.json").read_bytes())
        except FileNotFoundError:
            raise revision_not_found(oid) from None
        files = {path: Entry(**entry) for path, entry in record.pop("files").items()}
        return Commit(**{**record, "parents": tuple(record["parents"]), "files": files})

    def write(self, repo_folder: Path, commit: Commit) -> None:
        self._store.write_json(repo_folder / "commits" / f"{commit.oid}.json", asdict(commit))

    def find_ref(self, repo: Repo, revision: str) -> str | None:
        """The full name of the ref that a branch, a tag or refs/… means."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in repo.refs:
                return name
        return None

    def resolve(self, repo: Repo, revision: str) -> Commit:
        """A branch, tag, ref, commit id or its first 7 digits or more. Raises Refusal RevisionNotFound."""
        ref = self.find_ref(repo, revision)
        if ref is not None:
            return self.get(repo, repo.refs[ref])
        wanted = revision.lower()
        if 7 <= len(wanted) <= 40 and all(digit in "0123456789abcdef" for digit in wanted):
            matches = [path.stem for path in (self._repos.folder(repo) / "commits").glob(f"{wanted}*.json")]
            if len(matches) == 1:
                return self.get(repo, matches[0])
        raise revision_not_found(revision)

    def history(self, repo: Repo, commit: Commit) -> Iterator[Commit]:
        """From a commit back along first parents."""
        yield commit
        while commit.parents:
            commit = self.get(repo, commit.parents[0])
            yield commit

    def advance(self, repo: Repo, ref: str, parent: str | None, draft: "CommitDraft") -> tuple[Commit, Commit]:
        """Commit onto a ref, all or nothing. Returns the head before and after.

        Raises Refusal 412 if `parent` is given and is no longer the head, and whatever `apply` raises.
        """
        with repo.changing():
            if ref not in repo.refs:
                raise revision_not_found(ref)
            head = self.get(repo, repo.refs[ref])
            if parent is not None and not head.oid.startswith(parent):
                raise stale_parent()
            commit = draft.onto(head)
            self.write(self._repos.folder(repo), commit)
            self._repos.set_refs(repo, {ref: commit.oid})
            return head, commit

    def common_ancestor(self, repo: Repo, one: Commit, other: Commit) -> Commit | None:
        seen = {commit.oid for commit in self.history(repo, one)}
        return next((commit for commit in self.history(repo, other) if commit.oid in seen), None)


@dataclass(frozen=True)
class CommitDraft:
    """What a caller wants committed, before it has a parent."""

    title: str
    message: str
    author: str
    date: str
    operations: Sequence[Operation]

    def onto(self, parent: Commit) -> Commit:
        files = apply(parent.files, self.operations)
        return Commit.make(
            parents=[parent.oid], title=self.title, message=self.message, author=self.author, date=self.date, files=files
        )
