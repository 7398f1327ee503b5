"""Files on disk: content-addressed blobs and small JSON records.

A process killed at any moment leaves either the old or the new state of a record, and blobs that are whole or absent:
everything is written to `temp/` first and moved into place with a rename. (There is no fsync: a power cut is not covered.)

    root/lock              held by the one process that serves this folder
    root/blobs/ab/cdef…    every file's bytes under their sha256
    root/temp/             unfinished writes, multipart parts; emptied at start
    root/repos/KEY/        repo.json, refs.json, commits/OID.json, discussions/N.json
    root/collections/, root/webhooks/, root/secret, root/users.json
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from hubquant.errors import UsageError


@dataclass(frozen=True)
class Blob:
    sha256: str
    size: int


class BlobWriter:
    """Takes bytes in any number of chunks; `keep()` moves them into the store. Left without `keep()`, nothing remains."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._path = store.new_temp_path()
        self._file = self._path.open("wb")
        self._sha256 = hashlib.sha256()
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._sha256.update(chunk)
        self.size += len(chunk)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def keep(self) -> Blob:
        self.move_to(self._store.blob_path(self.sha256))
        return Blob(self.sha256, self.size)

    def move_to(self, target: Path) -> None:
        self._file.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(target)

    def __enter__(self) -> "BlobWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        finally:
            self._path.unlink(missing_ok=True)


class Store:
    """The folder of one local Hub. Raises UsageError if it cannot be written to or is already being served."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.temp = root / "temp"
        self.repos = root / "repos"
        try:
            for folder in (root, root / "blobs", self.repos):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(root / "lock", thread_local=False)  # whichever thread stops the Hub releases it
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"{root} is already being served by another local Hub: stop it or choose another folder") from None
        except OSError as error:
            raise UsageError(f"cannot keep a local Hub in {root}: {error.strerror or error}") from None
        shutil.rmtree(self.temp, ignore_errors=True)
        self.temp.mkdir(exist_ok=True)

    def close(self) -> None:
        self._lock.release()

    def new_temp_path(self) -> Path:
        return self.temp / secrets.token_hex(16)

    def blob_path(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256[2:]

    def blob_size(self, sha256: str) -> int | None:
        """Bytes, or None if there is no such blob."""
        try:
            return self.blob_path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, content: bytes) -> Blob:
        with BlobWriter(self) as writer:
            writer.write(content)
            return writer.keep()

    def read(self, sha256: str, limit_bytes: int) -> bytes:
        """The first `limit_bytes` of a blob."""
        with self.blob_path(sha256).open("rb") as file:
            return file.read(limit_bytes)

    def write_json(self, path: Path, value: Any) -> None:
        temp = self.new_temp_path()
        try:
            temp.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
            path.parent.mkdir(parents=True, exist_ok=True)
            temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)  # only after a failure is there anything left

    def read_records(self, folder: Path) -> Iterator[Any]:
        """Every JSON record directly in a folder, in the order of the names."""
        for path in sorted(folder.glob("*.json")):
            yield json.loads(path.read_bytes())

    def discard(self, folder: Path) -> None:
        """Remove a folder at once (a rename), then its content."""
        trash = self.new_temp_path()
        folder.replace(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def secret(self) -> bytes:
        """32 random bytes that stay the same for this folder: they sign upload addresses."""
        path = self.root / "secret"
        with suppress(FileNotFoundError):
            return path.read_bytes()
        temp = self.new_temp_path()
        temp.write_bytes(secrets.token_bytes(32))
        temp.replace(path)
        return path.read_bytes()
