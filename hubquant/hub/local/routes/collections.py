"""Collections and their items."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from hubquant.hub.local.accounts import Caller
from hubquant.hub.local.answers import bad_request
from hubquant.hub.local.listing import decode_cursor, encode_cursor
from hubquant.hub.local.routes.common import Body, Hub, Wanted, Who, text_field
from hubquant.hub.local.routes.repos import owned_namespace
from hubquant.hub.local.state import HubState

router = APIRouter(prefix="/api/collections")
ONE = "/{ns}/{slug}"
Names = Annotated[list[str] | None, Query()]


def _shown(hub: HubState, who: Caller, record: dict[str, Any]) -> dict[str, Any]:
    """The collection without the repos that the caller may not see."""
    items = [item for item in record["items"] if _visible(hub, who, item)]
    return {**{name: value for name, value in record.items() if name != "key"}, "items": items}


def _visible(hub: HubState, who: Caller, item: dict[str, Any]) -> bool:
    repo = hub.repos.find(item["type"], item["id"])
    return repo is None or repo.readable_by(who)


@router.get("")
def all_collections(page: Wanted, hub: Hub, who: Who, owner: Names = None, item: Names = None) -> JSONResponse:
    records = [_shown(hub, who, record) for record in hub.collections.all(who)]
    if owner:
        records = [record for record in records if record["owner"] in owner]
    if item:
        wanted = set(item)
        records = [record for record in records if wanted & {f"{one['type']}s/{one['id']}" for one in record["items"]}]
    start = _start(page.cursor)
    shown = [{name: value for name, value in record.items() if name != "position"} for record in records[start : start + page.size]]
    following = encode_cursor([start + page.size]) if len(records) > start + page.size else None
    return JSONResponse(shown, headers=page.headers(following))


def _start(cursor: str | None) -> int:
    start = decode_cursor(cursor, length=1)[0] if cursor else 0
    if not isinstance(start, int) or start < 0:
        raise bad_request("Invalid cursor")
    return start


@router.post("")
def create(body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    namespace = owned_namespace(hub, who, body.get("namespace"), "create a collection")
    title = text_field(body, "title").strip()
    if len(title) > 60:
        raise bad_request(f"The title of a collection has at most 60 characters, not {len(title)}")
    return _shown(hub, who, hub.collections.create(namespace, title, body.get("description"), bool(body.get("private"))))


@router.get(ONE)
def one(ns: str, slug: str, hub: Hub, who: Who) -> dict[str, Any]:
    return _shown(hub, who, hub.collections.get(ns, slug, who))


@router.patch(ONE)
def update(ns: str, slug: str, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    return {"success": True, "data": _shown(hub, who, hub.collections.update(ns, slug, who, body))}


@router.delete(ONE)
def delete(ns: str, slug: str, hub: Hub, who: Who) -> dict[str, Any]:
    hub.collections.delete(ns, slug, who)
    return {}


@router.post(ONE + "/items")
def add_item(ns: str, slug: str, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    item = body.get("item")
    if not isinstance(item, dict):
        raise bad_request('"item" must be an object with type and id')
    type_, item_id = text_field(item, "type"), text_field(item, "id")
    if type_ in ("model", "dataset", "space", "kernel"):
        item_id = hub.repos.get(type_, item_id, who).id
    return _shown(hub, who, hub.collections.add_item(ns, slug, who, type_, item_id, body.get("note")))


@router.patch(ONE + "/items/{key}")
def change_item(ns: str, slug: str, key: str, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    return _shown(hub, who, hub.collections.change_item(ns, slug, who, key, body.get("position"), body.get("note")))


@router.delete(ONE + "/items/{key}")
def delete_item(ns: str, slug: str, key: str, hub: Hub, who: Who) -> dict[str, Any]:
    return _shown(hub, who, hub.collections.delete_item(ns, slug, who, key))
