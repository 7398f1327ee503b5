"""The body of a commit: one JSON object per line. A file goes to disk as soon as its line is complete."""

import base64
import binascii
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from hubquant.hub.local import cards
from hubquant.hub.local.answers import Refusal, bad_request
from hubquant.hub.local.commits import Operation, Put, Remove, check_path, lfs_entry, regular_entry
from hubquant.hub.local.storage import Blob, Store

LINE_LIMIT_BYTES = 64 * 2**20


@dataclass
class CommitRequest:
    summary: str = ""
    description: str = ""
    parent: str | None = None
    operations: list[Operation] = field(default_factory=list)


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Raises Refusal 413 for a line that is too long to be a regular file."""
    pieces: list[bytes] = []
    held = 0
    async for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for end in complete:
            yield b"".join([*pieces, end])
            pieces, held = [], 0
        pieces.append(rest)
        held += len(rest)
        if held > LINE_LIMIT_BYTES:
            raise Refusal(413, "A regular file in the commit is too large: upload it through LFS")
    last = b"".join(pieces)
    if last.strip():
        yield last


async def read_commit(store: Store, chunks: AsyncIterator[bytes]) -> CommitRequest:
    """Raises Refusal 400 for a malformed line, an LFS file that was not uploaded, or a README.md with invalid metadata."""
    request = CommitRequest()
    header_seen = False
    async for line in lines(chunks):
        if not line.strip():
            continue
        key, value = _parse(line)
        if key == "header":
            header_seen = True
            request.summary, request.description = str(value.get("summary") or ""), str(value.get("description") or "")
            request.parent = value.get("parentCommit") or None
        else:
            request.operations.append(await run_in_threadpool(_operation, store, key, value))
    if not header_seen or not request.summary.strip():
        raise bad_request("A commit needs a header line with a summary")
    return request


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        item = json.loads(line)
        key, value = item["key"], item["value"]
    except (ValueError, KeyError, TypeError):
        raise bad_request("Each line of a commit must be a JSON object with key and value") from None
    if not isinstance(value, dict) or (key != "header" and not isinstance(value.get("path"), str)):
        raise bad_request(f"The line {key!r} of the commit needs a path")
    return str(key), value


def _operation(store: Store, key: str, value: dict[str, Any]) -> Operation:
    path = value["path"]
    match key:
        case "file":
            check_path(path)
            content = _content(value)
            if path == "README.md":
                errors, _ = cards.check(content.decode("utf-8", "replace"))
                if errors:
                    raise bad_request(f"Invalid metadata in README.md: {'; '.join(errors)}")
            return Put(path, regular_entry(content, store.put(content)))
        case "lfsFile":
            return _lfs_operation(store, value)
        case "deletedFile" | "deletedFolder":
            return Remove(path.strip("/"), folder=key == "deletedFolder")
    raise bad_request(f"{key!r} is not an operation of a commit")


def _content(value: dict[str, Any]) -> bytes:
    content, encoding = value.get("content"), value.get("encoding", "utf-8")
    if not isinstance(content, str) or encoding not in ("base64", "utf-8"):
        raise bad_request(f"The file {value['path']} needs its content, as base64 or utf-8")
    if encoding == "utf-8":
        return content.encode()
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise bad_request(f"The content of {value['path']} is not base64: {error}") from None


def _lfs_operation(store: Store, value: dict[str, Any]) -> Operation:
    path, oid, size = value["path"], str(value.get("oid")), value.get("size")
    stored = store.blob_size(oid) if len(oid) == 64 and oid.isalnum() else None
    if stored is None:
        raise bad_request(
            "Your push was rejected because an LFS pointer pointed to a file that does not exist. "
            f"For instance, this can happen if you used git push --no-verify to push your changes. Offending file: {path}"
        )
    if size is not None and size != stored:
        raise bad_request(f"The LFS file {path} has {stored} bytes, the commit says {size}")
    return Put(path, lfs_entry(Blob(oid, stored)))
