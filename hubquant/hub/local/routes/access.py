"""Gated repos: asking for access, and the owner's list of requests."""

import secrets
from typing import Any

from fastapi import APIRouter

from hubquant.hub.local.answers import bad_request, not_found, sign_in_first
from hubquant.hub.local.repos import URL_PREFIX, Repo
from hubquant.hub.local.routes.common import REPO, Address, Body, Hub, Who, text_field
from hubquant.hub.local.state import HubState

router = APIRouter()
STATUSES = ("pending", "accepted", "rejected")


def _set(hub: HubState, repo: Repo, user: str, status: str) -> None:
    with repo.changing():
        known = repo.access.get(user, {"id": secrets.token_hex(12), "timestamp": hub.clock.now()})
        hub.repos.update(repo, access={**repo.access, user: {**known, "status": status}})


def _register(type_: str, prefix: str) -> None:
    @router.post(f"/{prefix}{{ns}}/{{name}}/ask-access", name=f"ask_access_{type_}")
    def ask_access(ns: str, name: str, hub: Hub, who: Who) -> dict[str, Any]:
        """What the button on the page of a gated repo does: granted at once where the gate is automatic."""
        repo = hub.repos.get(type_, f"{ns}/{name}", who)
        if who.name is None:
            raise sign_in_first()
        if repo.gated and who.name not in repo.access:
            _set(hub, repo, who.name, "accepted" if repo.gated == "auto" else "pending")
        return {"status": repo.access.get(who.name, {}).get("status")}


for _type, _prefix in URL_PREFIX.items():
    _register(_type, _prefix)


@router.get(REPO + "/user-access-request/{status}")
def requests(address: Address, status: str, hub: Hub, who: Who) -> list[dict[str, Any]]:
    repo = hub.repos.get_writable(*address, who)
    if status not in STATUSES:
        raise bad_request(f'"status" must be one of {", ".join(STATUSES)}, not {status!r}')
    return [
        {
            "requestId": entry["id"],
            "user": {"user": name, "fullname": name, "email": f"{name}@localhost"},
            "status": status,
            "timestamp": entry["timestamp"],
            "fields": {},
        }
        for name, entry in repo.access.items()
        if entry["status"] == status
    ]


@router.post(REPO + "/user-access-request/grant")
def grant(address: Address, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo = hub.repos.get_writable(*address, who)
    user = hub.accounts.find(text_field(body, "user"))
    if user is None:
        raise not_found("User does not exist")
    _set(hub, repo, user.name, "accepted")
    return {}


@router.post(REPO + "/user-access-request/handle")
def handle(address: Address, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo = hub.repos.get_writable(*address, who)
    status = text_field(body, "status")
    if status not in STATUSES:
        raise bad_request(f'"status" must be one of {", ".join(STATUSES)}, not {status!r}')
    wanted = (body.get("user"), body.get("requestId"))
    name = next((name for name, entry in repo.access.items() if name == wanted[0] or entry["id"] == wanted[1]), None)
    if name is None:
        raise not_found("There is no such access request")
    _set(hub, repo, name, status)
    return {}
