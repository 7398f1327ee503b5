"""whoami, users, likes of a user, and small addresses that only have to answer."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from hubquant.hub.local import cards
from hubquant.hub.local.accounts import User
from hubquant.hub.local.answers import Refusal, invalid_token, not_found
from hubquant.hub.local.routes.common import Body, Hub, Who, text_field

router = APIRouter()


@router.get("/api/whoami-v2")
def whoami(who: Who) -> dict[str, Any]:
    if who.user is None:
        raise invalid_token()
    user = who.user
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in user.orgs]
    token = {"displayName": "local", "role": user.role, "createdAt": "2024-01-01T00:00:00.000Z"}
    return {
        "type": "user", "id": user.name, "name": user.name, "fullname": user.name, "email": f"{user.name}@localhost",
        "emailVerified": True, "isPro": False, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token},
    }  # fmt: skip


@router.get("/api/agent-harnesses")
def agent_harnesses() -> None:
    raise not_found("This Hub knows no agent harnesses")


@router.get("/api/users/{name}/overview")
def user_overview(name: str, hub: Hub, who: Who) -> dict[str, Any]:
    user = _user(hub, name)
    owned = [repo for repo in hub.repos if repo.namespace == user.name and repo.readable_by(who)]
    counts = {f"num{type_.capitalize()}s": sum(repo.type == type_ for repo in owned) for type_ in ("model", "dataset", "space")}
    orgs = [{"name": org, "fullname": org} for org in user.orgs]
    return {"user": user.name, "fullname": user.name, "type": "user", "avatarUrl": "", "isPro": False, "orgs": orgs, **counts}


@router.get("/api/users/{name}/likes")
def user_likes(name: str, hub: Hub, who: Who) -> list[dict[str, Any]]:
    user = _user(hub, name)
    liked = [repo for repo in hub.repos if user.name in repo.likes and repo.readable_by(who)]
    return [{"createdAt": repo.created_at, "repo": {"name": repo.id, "type": repo.type}} for repo in liked]


def _user(hub: Hub, name: str) -> User:
    user = hub.accounts.find(name)
    if user is None:
        raise Refusal(404, "User does not exist")
    return user


@router.post("/api/validate-yaml")
def validate_yaml(body: Body) -> JSONResponse:
    errors, warnings = cards.check(text_field(body, "content"))
    answer = {"errors": [{"message": message} for message in errors], "warnings": [{"message": message} for message in warnings]}
    return JSONResponse(answer, 400 if errors else 200)
