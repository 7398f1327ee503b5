"""The LFS batch, and the upload addresses it gives out."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from hubquant.hub.local.answers import bad_request
from hubquant.hub.local.repos import URL_PREFIX
from hubquant.hub.local.routes.commit import repo_to_propose_to
from hubquant.hub.local.routes.common import BaseUrl, Body, Hub, Who
from hubquant.hub.local.storage import BlobWriter

router = APIRouter()
WRITE_CHUNK_BYTES = 2**20


@router.post("/{ns}/{name}.git/info/lfs/objects/batch")
def model_batch(ns: str, name: str, body: Body, base: BaseUrl, hub: Hub, who: Who) -> JSONResponse:
    return _batch("model", f"{ns}/{name}", body, base, hub, who)


@router.post("/{prefix}/{ns}/{name}.git/info/lfs/objects/batch")
def batch(prefix: str, ns: str, name: str, body: Body, base: BaseUrl, hub: Hub, who: Who) -> JSONResponse:
    types = {url_prefix.rstrip("/"): type_ for type_, url_prefix in URL_PREFIX.items() if url_prefix}
    if prefix not in types:
        raise bad_request(f"{prefix!r} is not a type of repo")
    return _batch(types[prefix], f"{ns}/{name}", body, base, hub, who)


def _batch(type_: str, repo_id: str, body: dict[str, Any], base: str, hub: Hub, who: Who) -> JSONResponse:
    repo_to_propose_to(hub, (type_, repo_id), who)
    objects = body.get("objects")
    if body.get("operation") != "upload" or body.get("hash_algo", "sha256") != "sha256" or not isinstance(objects, list):
        raise bad_request("An LFS batch must be an upload of a list of objects by sha256")
    try:
        planned = [hub.uploads.plan(base, str(item["oid"]), int(item["size"])) for item in objects]
    except (TypeError, KeyError, ValueError):
        raise bad_request("Each of the objects needs oid and size") from None
    multipart = any("header" in item.get("actions", {}).get("upload", {}) for item in planned)
    answer = {"transfer": "multipart" if multipart else "basic", "objects": planned}
    return JSONResponse(answer, media_type="application/vnd.git-lfs+json")


async def signed(oid: str, request: Request, hub: Hub, size: int, signature: str, upload: str = "") -> tuple[str, int, str]:
    """The promise an upload address stands for: sha256, bytes, id of the multipart upload."""
    step = request.scope["path"].rpartition("/")[2]
    hub.uploads.check_signature(step, oid, size, upload, signature)
    return oid, size, upload


Promise = Annotated[tuple[str, int, str], Depends(signed)]


async def _large_chunks(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces worth a hop to another thread."""
    held = bytearray()
    async for chunk in request.stream():
        held += chunk
        if len(held) >= WRITE_CHUNK_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


async def _receive(request: Request, writer: BlobWriter, limit_bytes: int) -> None:
    async for chunk in _large_chunks(request):
        if writer.size + len(chunk) > limit_bytes:
            raise bad_request(f"More than the promised {limit_bytes} bytes")
        await run_in_threadpool(writer.write, chunk)


@router.put("/_lfs/{oid}/whole")
async def put_whole(promise: Promise, request: Request, hub: Hub) -> Response:
    oid, size, _ = promise
    with BlobWriter(hub.store) as writer:
        await _receive(request, writer, size)
        await run_in_threadpool(hub.uploads.keep, writer, oid, size)
    return Response(headers={"ETag": f'"{oid}"'})


@router.put("/_lfs/{oid}/part-{number}")
async def put_part(promise: Promise, number: int, request: Request, hub: Hub) -> Response:
    path = hub.uploads.part_path(promise[2], number)
    with BlobWriter(hub.store) as writer:
        await _receive(request, writer, hub.uploads.chunk_size)
        writer.move_to(path)
    return Response(headers={"ETag": f'"{writer.sha256}"'})


@router.post("/_lfs/{oid}/complete")
def complete(promise: Promise, hub: Hub) -> dict[str, Any]:
    hub.uploads.complete(*promise)
    return {"success": True}


@router.post("/_lfs/{oid}/verify")
def verify(promise: Promise, hub: Hub) -> dict[str, Any]:
    hub.uploads.verify(promise[0], promise[1])
    return {}
