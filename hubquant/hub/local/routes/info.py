"""Listing and info of repos."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from hubquant.hub.local import listing
from hubquant.hub.local.commits import Commit
from hubquant.hub.local.info import FULL_KEYS, INFO_KEYS, LIST_KEYS
from hubquant.hub.local.repos import Repo
from hubquant.hub.local.routes.common import REPO, Address, Hub, Segment, Wanted, Who
from hubquant.hub.local.state import HubState

router = APIRouter()
Names = Annotated[list[str] | None, Query()]


@router.get("/api/{kind:kind}")
def list_repos(
    kind: str,
    page: Wanted,
    hub: Hub,
    who: Who,
    filter: Names = None,
    author: str | None = None,
    search: str | None = None,
    pipeline_tag: str | None = None,
    gated: bool | None = None,
    num_parameters: str | None = None,
    apps: Names = None,
    sort: str = "trendingScore",
    expand: Names = None,
    full: bool = False,
    cardData: bool = False,
    config: bool = False,
) -> JSONResponse:
    sizes = listing.parse_sizes(num_parameters) if num_parameters else None
    query = listing.Query(kind, filter or (), author, search, pipeline_tag, gated, sizes, apps or ())
    repos, following = listing.page(hub, query, who, sort, page.size, page.cursor)
    keys = [*(FULL_KEYS if full else LIST_KEYS), *(["cardData"] if cardData else []), *(["config"] if config else [])]
    records = [_record(hub, repo, expand or keys) for repo in repos]
    return JSONResponse(records, headers=page.headers(following))


def _record(hub: HubState, repo: Repo, keys: list[str]) -> dict[str, Any]:
    return hub.infos.build(repo, hub.commits.resolve(repo, "main"), keys)


@router.api_route(REPO, methods=["GET", "HEAD"])
def info(
    address: Address, hub: Hub, who: Who, blobs: bool = False, securityStatus: bool = False, expand: Names = None
) -> JSONResponse:
    return info_at(address, "main", hub, who, blobs, securityStatus, expand)


@router.api_route(REPO + "/revision/{rev}", methods=["GET", "HEAD"])
def info_at(
    address: Address,
    rev: Segment,
    hub: Hub,
    who: Who,
    blobs: bool = False,
    securityStatus: bool = False,
    expand: Names = None,
) -> JSONResponse:
    repo = hub.repos.get(*address, who)
    commit = hub.commits.resolve(repo, rev)
    record = hub.infos.build(repo, commit, expand or INFO_KEYS, blobs=blobs)
    if securityStatus:
        record["securityRepoStatus"] = _security(commit)
    return JSONResponse(record)


def _security(commit: Commit) -> dict[str, Any]:
    """Nothing is scanned here; a pickle is named as what it is."""
    risky = [path for path in commit.files if path.endswith((".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt"))]
    return {"scansDone": True, "filesWithIssues": [{"path": path, "level": "suspicious"} for path in risky]}
