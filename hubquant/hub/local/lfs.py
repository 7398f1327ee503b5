"""Uploads of large files: signed addresses, one PUT or numbered parts, everything streamed and checked against its sha256."""

import hashlib
import hmac
import re
import secrets
import shutil
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from hubquant.hub.local.answers import Refusal, bad_request, not_found
from hubquant.hub.local.storage import Blob, BlobWriter, Store

SHA256 = re.compile(r"[0-9a-f]{64}")
COPY_CHUNK_BYTES = 2**20


class Uploads:
    """`chunk_size`: files above it are uploaded in parts of that many bytes."""

    def __init__(self, store: Store, chunk_size: int = 2**30) -> None:
        self.chunk_size = chunk_size
        self._store = store
        self._secret = store.secret()

    def plan(self, base_url: str, oid: str, size: int) -> dict[str, Any]:
        """One object of the batch answer. No actions: the file is there already."""
        if not SHA256.fullmatch(oid) or size < 0:
            error = {"code": 422, "message": f"{oid!r} with {size} bytes is not a sha256 and a size"}
            return {"oid": oid, "size": max(size, 0), "error": error}
        if self._store.blob_size(oid) == size:
            return {"oid": oid, "size": size}
        verify = {"href": self._sign(base_url, "verify", oid, size)}
        if size <= self.chunk_size:
            return {
                "oid": oid,
                "size": size,
                "actions": {"upload": {"href": self._sign(base_url, "whole", oid, size)}, "verify": verify},
            }
        upload = secrets.token_hex(8)
        parts = {
            f"{number:05d}": self._sign(base_url, f"part-{number}", oid, size, upload)
            for number in range(1, ceil(size / self.chunk_size) + 1)
        }
        header = {"chunk_size": str(self.chunk_size), **parts}
        complete = self._sign(base_url, "complete", oid, size, upload)
        return {"oid": oid, "size": size, "actions": {"upload": {"href": complete, "header": header}, "verify": verify}}

    def _signature(self, step: str, oid: str, size: int, upload: str) -> str:
        return hmac.new(self._secret, f"{step} {oid} {size} {upload}".encode(), hashlib.sha256).hexdigest()

    def _sign(self, base_url: str, step: str, oid: str, size: int, upload: str = "") -> str:
        query = urlencode({"size": size, "upload": upload, "signature": self._signature(step, oid, size, upload)})
        return f"{base_url}/_lfs/{oid}/{step}?{query}"

    def check_signature(self, step: str, oid: str, size: int, upload: str, signature: str) -> None:
        if not hmac.compare_digest(signature, self._signature(step, oid, size, upload)):
            raise Refusal(403, "This upload address was not given out by this Hub")

    def keep(self, writer: BlobWriter, oid: str, size: int) -> Blob:
        """Raises Refusal 400 if the bytes are not the promised ones."""
        if writer.size != size or writer.sha256 != oid:
            raise bad_request(
                f"Uploaded {writer.size} bytes with sha256 {writer.sha256}, promised were {size} bytes with sha256 {oid}"
            )
        return writer.keep()

    def part_path(self, upload: str, number: int) -> Path:
        if not re.fullmatch(r"[0-9a-f]{16}", upload):
            raise bad_request(f"{upload!r} is not an upload of parts")
        folder = self._store.temp / f"parts-{upload}"
        folder.mkdir(exist_ok=True)
        return folder / f"{number:05d}"

    def complete(self, oid: str, size: int, upload: str) -> Blob:
        """Put the parts together. Asked again after it succeeded, it succeeds again."""
        if self._store.blob_size(oid) == size:
            return Blob(oid, size)
        folder = self.part_path(upload, 1).parent
        with BlobWriter(self._store) as writer:
            for path in sorted(folder.iterdir()):
                with path.open("rb") as part:
                    while chunk := part.read(COPY_CHUNK_BYTES):
                        writer.write(chunk)
            blob = self.keep(writer, oid, size)
        shutil.rmtree(folder, ignore_errors=True)
        return blob

    def verify(self, oid: str, size: int) -> None:
        if self._store.blob_size(oid) != size:
            raise not_found(f"There is no file with sha256 {oid} and {size} bytes")
