"""Branches, tags and squashing: changes of refs that are not commits."""

import re
from typing import Any

from fastapi import APIRouter

from hubquant.hub.local.answers import Refusal, bad_request, forbidden, revision_not_found
from hubquant.hub.local.commits import MAIN, Commit
from hubquant.hub.local.repos import Repo
from hubquant.hub.local.routes.common import REPO, Address, Body, Hub, Segment, Who, text_field
from hubquant.hub.local.state import HubState
from hubquant.hub.local.webhooks import Event, updated_ref

router = APIRouter(prefix=REPO)
BAD_REF = re.compile(r"\.\.|//|[\s~^:?*\[\\\x00-\x1f\x7f]|@\{|^[/.-]|[/.]$|\.lock$|/\.")


def _check_name(name: str) -> None:
    """Raises Refusal 400 for what git would not take as a ref."""
    if not name or len(name) > 200 or BAD_REF.search(name) or name.startswith("refs/"):
        raise bad_request(f"Invalid reference name: {name!r}")


def _create(hub: HubState, repo: Repo, ref: str, commit: Commit) -> None:
    with repo.changing():
        if ref in repo.refs:
            raise Refusal(409, f"Reference {ref} already exists")
        hub.repos.set_refs(repo, {ref: commit.oid})
    hub.notify(repo, Event("update", "repo.content", updated_ref(ref, None, commit.oid)))


def _delete(hub: HubState, repo: Repo, ref: str) -> None:
    with repo.changing():
        if ref not in repo.refs:
            raise revision_not_found(ref)
        old = repo.refs[ref]
        hub.repos.set_refs(repo, {ref: None})
    hub.notify(repo, Event("update", "repo.content", updated_ref(ref, old, None)))


@router.post("/branch/{branch}")
def create_branch(address: Address, branch: Segment, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo = hub.repos.get_writable(*address, who)
    _check_name(branch)
    _create(hub, repo, f"refs/heads/{branch}", hub.commits.resolve(repo, str(body.get("startingPoint") or "main")))
    return {}


@router.delete("/branch/{branch}")
def delete_branch(address: Address, branch: Segment, hub: Hub, who: Who) -> dict[str, Any]:
    repo = hub.repos.get_writable(*address, who)
    ref = f"refs/heads/{branch}"
    if ref == MAIN:
        raise forbidden(f"Cannot delete {ref}")
    _delete(hub, repo, ref)
    return {}


@router.post("/tag/{rev}")
def create_tag(address: Address, rev: Segment, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo = hub.repos.get_writable(*address, who)
    tag = text_field(body, "tag")
    _check_name(tag)
    _create(hub, repo, f"refs/tags/{tag}", hub.commits.resolve(repo, rev))
    return {}


@router.delete("/tag/{tag}")
def delete_tag(address: Address, tag: Segment, hub: Hub, who: Who) -> dict[str, Any]:
    _delete(hub, hub.repos.get_writable(*address, who), f"refs/tags/{tag}")
    return {}


@router.post("/super-squash/{branch}")
def super_squash(address: Address, branch: Segment, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    """One commit without a parent in place of the branch's history."""
    repo = hub.repos.get_writable(*address, who)
    ref, title = f"refs/heads/{branch}", text_field(body, "message")
    with repo.changing():
        if ref not in repo.refs:
            raise revision_not_found(branch)
        head = hub.commits.get(repo, repo.refs[ref])
        author, date = who.name or "", hub.clock.now()
        squashed = Commit.make(parents=[], title=title, message="", author=author, date=date, files=head.files)
        hub.commits.write(hub.repos.folder(repo), squashed)
        hub.repos.set_refs(repo, {ref: squashed.oid})
    hub.notify(repo, Event("update", "repo.content", updated_ref(ref, head.oid, squashed.oid)))
    return {}
