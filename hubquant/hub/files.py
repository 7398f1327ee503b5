"""Files and what they are called by: sha256, git's blob id, and where a file stands in a commit."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from hubquant.artifact import file_sha256


def git_oid(source: Path | bytes) -> str:
    """git's id of a blob: sha1 over "blob SIZE\\0CONTENT". The Hub keeps small text files as plain blobs."""
    content = source.read_bytes() if isinstance(source, Path) else source
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class File:
    """One file to commit: where in the repo, what (a path or the bytes), and the sha256 that must arrive."""

    path: str
    source: Path | bytes
    sha256: str

    @classmethod
    def of_bytes(cls, path: str, content: bytes) -> "File":
        return cls(path, content, hashlib.sha256(content).hexdigest())

    def is_at(self, entry: RepoFile | None) -> bool:
        """Whether the entry of the repo's tree has exactly this content."""
        if entry is None:
            return False
        if entry.lfs is not None:
            return bool(entry.lfs.sha256 == self.sha256)
        return bool(entry.blob_id == git_oid(self.source))


@dataclass(frozen=True)
class RemoteFile:
    """One file of a commit: `hash` is the sha256 (64 digits) of a large file, git's blob id (40 digits) of a small one."""

    name: str
    hash: str
    size: int

    def is_at(self, path: Path) -> bool:
        """Whether the local file has exactly this content."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return (file_sha256(path) if len(self.hash) == 64 else git_oid(path)) == self.hash
