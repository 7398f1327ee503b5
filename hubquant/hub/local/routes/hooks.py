"""Test hooks over HTTP, for a Hub that runs in another process. Mounted only with test_hooks."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError

from hubquant.hub.local.answers import bad_request
from hubquant.hub.local.faults import Fault
from hubquant.hub.local.routes.common import Body, Hub

router = APIRouter(prefix="/_test")


@router.post("/faults")
def add_fault(body: Body, hub: Hub) -> dict[str, Any]:
    """The fields of faults.Fault; {"drop": "after", "path": "/commit/", "method": "POST"} cuts the connection after a commit."""
    unknown = body.keys() - Fault.__dataclass_fields__.keys()
    if unknown:
        raise bad_request(f"A fault has no field {sorted(unknown)[0]!r}; it has {', '.join(Fault.__dataclass_fields__)}")
    try:
        return asdict(hub.faults.add(TypeAdapter(Fault).validate_python(body)))
    except ValidationError as error:
        raise bad_request(str(error)) from None


@router.get("/faults")
def faults(hub: Hub) -> list[dict[str, Any]]:
    return [asdict(fault) for fault in hub.faults]


@router.delete("/faults")
def clear_faults(hub: Hub) -> dict[str, Any]:
    hub.faults.clear()
    return {}


@router.get("/requests")
def requests(hub: Hub) -> list[dict[str, Any]]:
    return [asdict(request) for request in hub.requests]


@router.delete("/requests")
def clear_requests(hub: Hub) -> dict[str, Any]:
    hub.requests.clear()
    return {}


@router.post("/settings")
def change_settings(body: Body, hub: Hub) -> dict[str, Any]:
    """page_size, lfs_chunk_size (bytes), quota (requests per window), clock_offset_seconds."""
    try:
        hub.page_size = int(body.get("page_size", hub.page_size))
        hub.uploads.chunk_size = int(body.get("lfs_chunk_size", hub.uploads.chunk_size))
        hub.rate_limit.quota = int(body.get("quota", hub.rate_limit.quota))
        hub.clock.offset_seconds = float(body.get("clock_offset_seconds", hub.clock.offset_seconds))
    except (TypeError, ValueError) as error:
        raise bad_request(str(error)) from None
    return {"page_size": hub.page_size, "lfs_chunk_size": hub.uploads.chunk_size, "quota": hub.rate_limit.quota}
