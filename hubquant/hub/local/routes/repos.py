"""Create, delete, move, settings, access, likes."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter

from hubquant.hub.local.accounts import Caller
from hubquant.hub.local.answers import Refusal, bad_request, forbidden, sign_in_first
from hubquant.hub.local.commits import MAIN, Commit, Entry, regular_entry
from hubquant.hub.local.gitattributes import DEFAULT_GITATTRIBUTES
from hubquant.hub.local.repos import TYPES, Repo, check_name, new_key
from hubquant.hub.local.routes.common import REPO, Address, BaseUrl, Body, Hub, Who, text_field
from hubquant.hub.local.state import HubState
from hubquant.hub.local.webhooks import Event, owner_id

router = APIRouter()


def owned_namespace(hub: HubState, who: Caller, name: str | None, action: str) -> str:
    """The namespace to write to, as its owner spells it. Raises 401 or 403."""
    if who.user is None:
        raise sign_in_first()
    namespace = name or who.user.name
    if not who.can_write or not who.member_of(namespace):
        raise forbidden(f'You don\'t have the rights to {action} under the namespace "{namespace}"')
    return hub.accounts.namespace(namespace) or namespace


def _type(body: dict[str, Any]) -> str:
    type_ = body.get("type") or "model"
    if type_ not in TYPES:
        raise bad_request(f'"type" must be one of {", ".join(TYPES)}, not {type_!r}')
    return str(type_)


def _private(body: dict[str, Any]) -> bool | None:
    """None where the body does not say."""
    visibility = body.get("visibility")
    if visibility is None:
        return body.get("private") if isinstance(body.get("private"), bool) else None
    if visibility not in ("public", "private"):
        raise bad_request(f'"visibility" must be public or private, not {visibility!r}')
    return bool(visibility == "private")


@router.post("/api/repos/create")
def create(body: Body, base: BaseUrl, hub: Hub, who: Who) -> dict[str, Any]:
    type_, name = _type(body), text_field(body, "name")
    namespace = owned_namespace(hub, who, body.get("organization"), f"create a {type_}")
    check_name(name)
    created_at = hub.clock.now()
    repo = Repo(key=new_key(), type=type_, id=f"{namespace}/{name}", created_at=created_at, private=_private(body) or False)
    repo.sdk = body.get("sdk") if type_ == "space" else None
    author = who.name or ""

    def first_files(folder: Path) -> dict[str, str]:
        content = DEFAULT_GITATTRIBUTES.encode()
        files: dict[str, Entry] = {".gitattributes": regular_entry(content, hub.store.put(content))}
        commit = Commit.make(parents=[], title="initial commit", message="", author=author, date=created_at, files=files)
        hub.commits.write(folder, commit)
        return {MAIN: commit.oid}

    answer = {"url": f"{base}/{repo.url_path}", "name": repo.id, "id": repo.key}
    try:
        hub.repos.create(repo, first_files)
    except Refusal as refusal:
        raise Refusal(refusal.status, refusal.message, body={"error": refusal.message, **answer}) from None
    hub.notify(repo, Event("create", "repo", {}))
    return answer


@router.delete("/api/repos/delete")
def delete(body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    type_, name = _type(body), text_field(body, "name")
    if who.anonymous:
        raise sign_in_first()
    repo = hub.repos.get_writable(type_, f"{body.get('organization') or who.name}/{name}", who)
    hub.notify(repo, Event("delete", "repo", {}))
    hub.repos.delete(repo)
    return {}


@router.post("/api/repos/move")
def move(body: Body, base: BaseUrl, hub: Hub, who: Who) -> dict[str, Any]:
    type_, from_id, to_id = _type(body), text_field(body, "fromRepo"), text_field(body, "toRepo")
    if to_id.count("/") != 1:
        raise bad_request(f'"toRepo" must be namespace/name, not {to_id!r}')
    namespace, _, name = to_id.partition("/")
    repo = hub.repos.get_writable(type_, from_id, who)
    owner = owned_namespace(hub, who, namespace, f"move a {type_}")
    check_name(name)
    hub.notify(repo, Event("move", "repo", {"movedTo": {"name": f"{owner}/{name}", "owner": {"id": owner_id(owner)}}}))
    hub.repos.move(repo, f"{owner}/{name}")
    return {"url": f"{base}/{repo.url_path}"}


@router.put(REPO + "/settings")
def settings(address: Address, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo = hub.repos.get_writable(*address, who)
    private, gate = _private(body), body.get("gated")
    if gate not in (None, False, "auto", "manual"):
        raise bad_request(f'"gated" must be auto, manual or false, not {gate!r}')
    wanted = {"private": private, "gated": gate}
    hub.repos.update(repo, **{name: value for name, value in wanted.items() if value is not None})
    hub.notify(repo, Event("update", "repo.config", {}))
    return {"private": repo.private, "gated": repo.gated}


@router.get(REPO + "/auth-check")
def auth_check(address: Address, hub: Hub, who: Who) -> dict[str, Any]:
    hub.repos.get_content(*address, who)
    return {}


@router.get(REPO + "/auth-check/write")
def auth_check_write(address: Address, hub: Hub, who: Who) -> dict[str, Any]:
    hub.repos.get_writable(*address, who)
    return {}


@router.post(REPO + "/like")
def like(address: Address, hub: Hub, who: Who) -> dict[str, Any]:
    _set_like(hub, hub.repos.get(*address, who), who, wanted=True)
    return {}


@router.delete(REPO + "/like")
def unlike(address: Address, hub: Hub, who: Who) -> dict[str, Any]:
    _set_like(hub, hub.repos.get(*address, who), who, wanted=False)
    return {}


def _set_like(hub: HubState, repo: Repo, who: Caller, wanted: bool) -> None:
    if who.name is None:
        raise sign_in_first()
    with repo.changing():
        hub.repos.update(repo, likes=[name for name in repo.likes if name != who.name] + ([who.name] if wanted else []))


@router.get(REPO + "/likers")
def likers(address: Address, hub: Hub, who: Who) -> list[dict[str, Any]]:
    repo = hub.repos.get(*address, who)
    return [{"user": name, "fullname": name, "avatarUrl": "", "type": "user"} for name in repo.likes]
