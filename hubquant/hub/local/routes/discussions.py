"""Discussions and pull requests."""

import difflib
from typing import Any

from fastapi import APIRouter

from hubquant.hub.local.accounts import Caller
from hubquant.hub.local.answers import forbidden, sign_in_first
from hubquant.hub.local.commits import Entry, Put, lfs_pointer
from hubquant.hub.local.discussions import Record, pr_ref
from hubquant.hub.local.repos import Repo
from hubquant.hub.local.routes.common import REPO, Address, Body, Hub, Who, text_field
from hubquant.hub.local.state import HubState
from hubquant.hub.local.webhooks import Event, discussion_details, updated_ref

router = APIRouter(prefix=REPO + "/discussions")
DIFF_LIMIT_BYTES = 256 * 1024


def _participant(hub: HubState, address: tuple[str, str], who: Caller) -> tuple[Repo, str]:
    """The repo, and the name of a caller who may take part in its discussions."""
    repo = hub.repos.get(*address, who)
    if who.name is None:
        raise sign_in_first()
    if not who.can_write:
        raise forbidden("This token has no right to write")
    return repo, who.name


def _steward(hub: HubState, address: tuple[str, str], who: Caller, record: Record) -> None:
    """Raises Refusal 403 to those who neither opened the discussion nor may write to the repo."""
    if record["author"] != who.name:
        hub.repos.get_writable(*address, who)


def _summary(repo: Repo, record: Record) -> Record:
    about = {name: record[name] for name in ("num", "title", "status", "createdAt", "isPullRequest")}
    return {**about, "author": {"name": record["author"], "type": "user"}, "repo": {"name": repo.id, "type": repo.type}}


def _announce(hub: HubState, repo: Repo, action: str, num: int, comment: Record | None = None) -> None:
    details = discussion_details(hub.url, repo, hub.discussions.get(repo, num), comment)
    hub.notify(repo, Event(action, "discussion.comment" if comment else "discussion", details))


@router.get("")
def all_discussions(
    address: Address, hub: Hub, who: Who, p: int = 0, type: str = "all", status: str = "all", author: str | None = None
) -> dict[str, Any]:
    repo = hub.repos.get(*address, who)
    records = hub.discussions.all(repo)
    if type != "all":
        records = [record for record in records if record["isPullRequest"] == (type == "pull_request")]
    if status != "all":
        open_states = ("open", "draft")
        records = [record for record in records if (record["status"] in open_states) == (status == "open")]
    if author is not None:
        records = [record for record in records if record["author"] == author]
    start = max(p, 0) * hub.page_size
    page = [_summary(repo, record) for record in records[start : start + hub.page_size]]
    return {"discussions": page, "count": len(records), "start": start}


@router.post("")
def create(address: Address, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo, author = _participant(hub, address, who)
    title, text = text_field(body, "title"), text_field(body, "description")
    open_ = hub.discussions.open_draft_pr if body.get("pullRequest") else hub.discussions.open
    record = open_(repo, author, title, text)
    _announce(hub, repo, "create", record["num"])
    return {"num": record["num"], "pullRequest": record["isPullRequest"]}


@router.get("/{num:int}")
def details(address: Address, num: int, hub: Hub, who: Who, diff: bool = False) -> dict[str, Any]:
    repo = hub.repos.get(*address, who)
    record = hub.discussions.get(repo, num)
    answer = {**_summary(repo, record), "events": record["events"]}
    if record["isPullRequest"]:
        merged = {"mergeCommitId": record["mergeCommitId"]} if record["mergeCommitId"] else {}
        answer["changes"] = {"base": record["base"], **merged}
        answer["filesWithConflicts"] = hub.discussions.conflicts(repo, record) if record["status"] in ("open", "draft") else []
        if diff:
            answer["diff"] = _diff(hub, repo, record)
    return answer


def _diff(hub: HubState, repo: Repo, record: Record) -> str:
    _, start, operations = hub.discussions.changes(repo, record)
    out: list[str] = []
    for operation in operations:
        old, new = start.files.get(operation.path), operation.entry if isinstance(operation, Put) else None
        names = (f"a/{operation.path}" if old else "/dev/null", f"b/{operation.path}" if new else "/dev/null")
        out.append(f"diff --git a/{operation.path} b/{operation.path}")
        out += difflib.unified_diff(_lines(hub, old), _lines(hub, new), *names, lineterm="")
    return "\n".join(out)


def _lines(hub: HubState, entry: Entry | None) -> list[str]:
    """What git would compare: the text, or the pointer of an LFS file."""
    if entry is None:
        return []
    content = lfs_pointer(entry.sha256, entry.size) if entry.lfs else hub.store.read(entry.sha256, DIFF_LIMIT_BYTES)
    return content.decode("utf-8", "replace").splitlines()


@router.post("/{num:int}/comment")
def comment(address: Address, num: int, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo, author = _participant(hub, address, who)
    event = hub.discussions.comment(repo, num, author, text_field(body, "comment"))
    _announce(hub, repo, "create", num, event)
    return {"newMessage": event}


@router.post("/{num:int}/title")
def title(address: Address, num: int, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo, author = _participant(hub, address, who)
    _steward(hub, address, who, hub.discussions.get(repo, num))
    event = hub.discussions.rename(repo, num, author, text_field(body, "title"))
    _announce(hub, repo, "update", num)
    return {"newTitle": event}


@router.post("/{num:int}/status")
def status(address: Address, num: int, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo, author = _participant(hub, address, who)
    _steward(hub, address, who, hub.discussions.get(repo, num))
    event = hub.discussions.set_status(repo, num, author, text_field(body, "status"))
    if body.get("comment"):
        hub.discussions.comment(repo, num, author, text_field(body, "comment"))
    _announce(hub, repo, "update", num)
    return {"newStatus": event}


@router.post("/{num:int}/merge")
def merge(address: Address, num: int, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo = hub.repos.get_writable(*address, who)
    _, author = _participant(hub, address, who)
    base = hub.discussions.get(repo, num)["base"]
    before, after = hub.discussions.merge(repo, num, author)
    if body.get("comment"):
        hub.discussions.comment(repo, num, author, text_field(body, "comment"))
    hub.notify(repo, Event("update", "repo.content", updated_ref(base, before.oid, after.oid)))
    _announce(hub, repo, "update", num)
    return {"mergeCommitId": after.oid}


@router.post("/{num:int}/comment/{comment_id}/edit")
def edit(address: Address, num: int, comment_id: str, body: Body, hub: Hub, who: Who) -> dict[str, Any]:
    repo, author = _participant(hub, address, who)
    event = hub.discussions.edit_comment(repo, num, author, comment_id, text_field(body, "content"))
    _announce(hub, repo, "update", num, event)
    return {"updatedComment": event}


@router.post("/{num:int}/comment/{comment_id}/hide")
def hide(address: Address, num: int, comment_id: str, hub: Hub, who: Who) -> dict[str, Any]:
    repo, author = _participant(hub, address, who)
    event = hub.discussions.edit_comment(repo, num, author, comment_id, None)
    _announce(hub, repo, "update", num, event)
    return {"updatedComment": event}


def announce_pr(hub: HubState, repo: Repo, record: Record, oid: str) -> None:
    """A pull request that came with its first commit."""
    hub.notify(repo, Event("update", "repo.content", updated_ref(pr_ref(record["num"]), None, oid)))
    _announce(hub, repo, "create", record["num"])
