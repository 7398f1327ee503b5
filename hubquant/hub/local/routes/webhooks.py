"""Webhook settings."""

from typing import Any

from fastapi import APIRouter

from hubquant.hub.local.accounts import Caller, User
from hubquant.hub.local.answers import forbidden, sign_in_first
from hubquant.hub.local.routes.common import Body, Hub, Who

router = APIRouter(prefix="/api/settings/webhooks")


def _owner(who: Caller, write: bool = True) -> User:
    if who.user is None:
        raise sign_in_first()
    if write and not who.can_write:
        raise forbidden("This token has no right to write")
    return who.user


@router.get("")
def all_webhooks(hub: Hub, who: Who) -> list[dict[str, Any]]:
    return hub.webhooks.of(_owner(who, write=False))


@router.post("")
def create(body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    return {"webhook": hub.webhooks.save(_owner(who), body)}


@router.get("/{id_}")
def one(id_: str, hub: Hub, who: Who) -> dict[str, Any]:
    return {"webhook": hub.webhooks.get(_owner(who, write=False), id_)}


@router.post("/{id_}")
def update(id_: str, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    owner = _owner(who)
    return {"webhook": hub.webhooks.save(owner, body, hub.webhooks.get(owner, id_))}


@router.delete("/{id_}")
def delete(id_: str, hub: Hub, who: Who) -> dict[str, Any]:
    hub.webhooks.delete(_owner(who), id_)
    return {}


@router.post("/{id_}/enable")
def enable(id_: str, hub: Hub, who: Who) -> dict[str, Any]:
    return {"webhook": hub.webhooks.set_disabled(_owner(who), id_, disabled=False)}


@router.post("/{id_}/disable")
def disable(id_: str, hub: Hub, who: Who) -> dict[str, Any]:
    return {"webhook": hub.webhooks.set_disabled(_owner(who), id_, disabled=True)}
