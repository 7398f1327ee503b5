"""Trees, paths, refs, history, branches and tags."""

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse

from hubquant.hub.local.answers import entry_not_found
from hubquant.hub.local.commits import Commit, Entry
from hubquant.hub.local.info import lfs_fields
from hubquant.hub.local.listing import decode_cursor, encode_cursor
from hubquant.hub.local.repos import Repo
from hubquant.hub.local.routes.common import REPO, Address, Hub, Segment, Wanted, Who
from hubquant.hub.local.state import HubState

router = APIRouter()
PREFIXES = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/", "pullRequests": "refs/pr/"}


def _file_item(path: str, entry: Entry) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
    if entry.lfs:
        item["lfs"] = lfs_fields(entry, "oid")
    return item


def _folder_item(path: str, commit: Commit) -> dict[str, Any]:
    inside = "".join(f"{name}\0{entry.oid}\n" for name, entry in commit.files.items() if name.startswith(path + "/"))
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(inside.encode(), usedforsecurity=False).hexdigest()}


def _folders(commit: Commit) -> set[str]:
    return {path[:at] for path in commit.files for at in range(len(path)) if path[at] == "/"}


def _with_last_commit(hub: HubState, repo: Repo, commit: Commit, item: dict[str, Any]) -> dict[str, Any]:
    """The newest commit that changed the path."""
    path, changed = item["path"], commit
    now = _under(commit, path)
    for older in hub.commits.history(repo, commit):
        if _under(older, path) != now:
            break
        changed = older
    last = {"id": changed.oid, "title": changed.title, "date": changed.date}
    status = {"status": "unscanned", "avScan": None, "pickleImportScan": None}
    return {**item, "lastCommit": last, **({"securityFileStatus": status} if item["type"] == "file" else {})}


def _under(commit: Commit, path: str) -> list[tuple[str, str]]:
    return [(name, entry.oid) for name, entry in commit.files.items() if name == path or name.startswith(path + "/")]


@router.get(REPO + "/tree/{rev}")
def tree(
    address: Address, rev: Segment, page: Wanted, hub: Hub, who: Who, recursive: bool = False, expand: bool = False
) -> JSONResponse:
    return subtree(address, rev, "", page, hub, who, recursive, expand)


@router.get(REPO + "/tree/{rev}/{path:path}")
def subtree(
    address: Address, rev: Segment, path: Segment, page: Wanted, hub: Hub, who: Who, recursive: bool = False, expand: bool = False
) -> JSONResponse:
    repo = hub.repos.get(*address, who)
    commit = hub.commits.resolve(repo, rev)
    path = path.strip("/")
    inside = f"{path}/" if path else ""
    if path and path not in _folders(commit):
        raise entry_not_found(f"{path} does not exist on {rev}", commit.oid)
    names = [name for name in (*commit.files, *_folders(commit)) if name.startswith(inside)]
    if not recursive:
        names = [name for name in names if "/" not in name[len(inside) :]]
    names.sort()
    if page.cursor is not None:
        last = str(decode_cursor(page.cursor, length=1)[0])
        names = [name for name in names if name > last]
    items = [_item(hub, repo, commit, name, expand) for name in names[: page.size]]
    following = encode_cursor([names[page.size - 1]]) if len(names) > page.size else None
    return JSONResponse(items, headers=page.headers(following))


def _item(hub: HubState, repo: Repo, commit: Commit, name: str, expand: bool) -> dict[str, Any]:
    entry = commit.files.get(name)
    item = _folder_item(name, commit) if entry is None else _file_item(name, entry)
    return _with_last_commit(hub, repo, commit, item) if expand else item


@router.post(REPO + "/paths-info/{rev}")
def paths_info(
    address: Address, rev: Segment, hub: Hub, who: Who, paths: Annotated[list[str], Form()], expand: Annotated[bool, Form()] = False
) -> list[dict[str, Any]]:
    repo = hub.repos.get(*address, who)
    commit = hub.commits.resolve(repo, rev)
    known = [path for path in (path.strip("/") for path in paths) if path in commit.files or path in _folders(commit)]
    return [_item(hub, repo, commit, path, expand) for path in known]


@router.get(REPO + "/refs")
def refs(address: Address, hub: Hub, who: Who, include_prs: bool = False) -> dict[str, Any]:
    repo = hub.repos.get(*address, who)
    answer: dict[str, Any] = {key: [] for key in PREFIXES if include_prs or key != "pullRequests"}
    for ref, oid in sorted(repo.refs.items()):
        for key, prefix in PREFIXES.items():
            if key in answer and ref.startswith(prefix):
                answer[key].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid})
    return answer


@router.get(REPO + "/commits/{rev}")
def commits(address: Address, rev: Segment, request: Request, page: Wanted, hub: Hub, who: Who) -> JSONResponse:
    repo = hub.repos.get(*address, who)
    first = hub.commits.resolve(repo, str(decode_cursor(page.cursor, length=1)[0]) if page.cursor else rev)
    formatted = bool(request.query_params.getlist("expand[]"))
    shown: list[dict[str, Any]] = []
    following = None
    for commit in hub.commits.history(repo, first):
        if len(shown) == page.size:
            following = encode_cursor([commit.oid])
            break
        shown.append(_commit_item(commit, formatted))
    return JSONResponse(shown, headers=page.headers(following))


def _commit_item(commit: Commit, formatted: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
    item["authors"] = [{"user": commit.author, "avatar": ""}]
    return {**item, "formatted": {"title": commit.title, "message": commit.message}} if formatted else item
