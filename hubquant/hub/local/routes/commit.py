"""Preupload and commit."""

import base64
import binascii
import re
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from hubquant.hub.local.accounts import Caller
from hubquant.hub.local.answers import bad_request, forbidden, revision_not_found, sign_in_first
from hubquant.hub.local.commits import Commit, CommitDraft
from hubquant.hub.local.gitattributes import is_lfs, lfs_patterns
from hubquant.hub.local.ndjson import CommitRequest, read_commit
from hubquant.hub.local.repos import Repo
from hubquant.hub.local.routes.common import REPO, Address, BaseUrl, Body, Hub, Segment, Who
from hubquant.hub.local.routes.discussions import announce_pr
from hubquant.hub.local.state import HubState
from hubquant.hub.local.webhooks import Event, updated_ref

router = APIRouter()
ATTRIBUTES_LIMIT_BYTES = 2**20


def repo_to_propose_to(hub: HubState, address: tuple[str, str], who: Caller) -> Repo:
    """Anybody with a write token who can see a repo may open a pull request."""
    repo = hub.repos.get(*address, who)
    if who.anonymous:
        raise sign_in_first()
    if not who.can_write:
        raise forbidden("This token has no right to write")
    return repo


def repo_to_change(hub: HubState, address: tuple[str, str], rev: str, who: Caller, create_pr: bool) -> Repo:
    """To commit to a revision takes the right to write, but for one's own pull requests."""
    own_pr = re.fullmatch(r"refs/pr/(\d+)", rev)
    if create_pr or own_pr:
        repo = repo_to_propose_to(hub, address, who)
        if create_pr or (own_pr and hub.discussions.get(repo, int(own_pr[1]))["author"] == who.name):
            return repo
    return hub.repos.get_writable(*address, who)


@router.post(REPO + "/preupload/{rev}")
def preupload(address: Address, rev: Segment, body: Body, hub: Hub, who: Who, create_pr: bool = False) -> dict[str, Any]:
    repo = repo_to_change(hub, address, rev, who, create_pr)
    commit = hub.commits.resolve(repo, rev)
    patterns = _patterns(hub, commit)
    files = body.get("files")
    if not isinstance(files, list):
        raise bad_request('"files" must be a list')
    return {"files": [_upload_mode(commit, patterns, file) for file in files]}


def _patterns(hub: HubState, commit: Commit) -> list[str]:
    attributes = commit.files.get(".gitattributes")
    return lfs_patterns(hub.store.read(attributes.sha256, ATTRIBUTES_LIMIT_BYTES).decode("utf-8", "replace")) if attributes else []


def _upload_mode(commit: Commit, patterns: list[str], file: Any) -> dict[str, Any]:
    try:
        path, size, sample = str(file["path"]), int(file["size"]), base64.b64decode(file.get("sample") or "", validate=True)
    except (TypeError, KeyError, AttributeError, ValueError, binascii.Error):
        raise bad_request("Each of the files needs path, size and a base64 sample") from None
    answer: dict[str, Any] = {
        "path": path,
        "uploadMode": "lfs" if is_lfs(path, size, sample, patterns) else "regular",
        "shouldIgnore": False,
    }
    present = commit.files.get(path)
    if present is not None:
        answer["oid"] = present.sha256 if present.lfs else present.oid
    return answer


@router.post(REPO + "/commit/{rev}")
async def commit(
    address: Address, rev: Segment, request: Request, base: BaseUrl, hub: Hub, who: Who, create_pr: bool = False
) -> dict[str, Any]:
    repo = await run_in_threadpool(repo_to_change, hub, address, rev, who, create_pr)
    wanted = await read_commit(hub.store, request.stream())
    made, num = await run_in_threadpool(_commit, hub, repo, rev, wanted, who.name or "", create_pr)
    page = f"{base}/{repo.url_path}"
    answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{page}/commit/{made.oid}", "hookOutput": ""}
    return answer if num is None else {**answer, "pullRequestUrl": f"{page}/discussions/{num}"}


def _commit(hub: HubState, repo: Repo, rev: str, wanted: CommitRequest, author: str, create_pr: bool) -> tuple[Commit, int | None]:
    """The commit, and the number of the pull request that was opened for it."""
    ref = hub.commits.find_ref(repo, rev)
    if ref is None or ref.startswith("refs/tags/"):
        raise revision_not_found(rev)
    draft = CommitDraft(wanted.summary, wanted.description, author, hub.clock.now(), wanted.operations)
    if create_pr:
        parent = hub.commits.resolve(repo, wanted.parent or ref)
        record, made = hub.discussions.open_pr_with(repo, ref, parent, draft)
        announce_pr(hub, repo, record, made.oid)
        return made, record["num"]
    before, made = hub.commits.advance(repo, ref, wanted.parent, draft)
    hub.notify(repo, Event("update", "repo.content", updated_ref(ref, before.oid, made.oid)))
    if ref.startswith("refs/pr/"):
        hub.discussions.add_commit_event(repo, int(ref.rpartition("/")[2]), made)
    return made, None
