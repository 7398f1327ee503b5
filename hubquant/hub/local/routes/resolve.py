"""Downloads: the bytes of one file at one revision, whole or by range, streamed from disk."""

from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from hubquant.hub.local.answers import Refusal, entry_not_found
from hubquant.hub.local.repos import URL_PREFIX, Repo
from hubquant.hub.local.routes.common import REPO, Address, Hub, Segment, Who
from hubquant.hub.local.state import HubState

router = APIRouter()
TEXT_ENDINGS = (".md", ".txt", ".json", ".jsonl", ".jinja", ".yaml", ".yml", ".toml", ".py", ".csv", ".gitattributes")


class LargeChunks(FileResponse):
    """Reads from disk in pieces worth a hop to another thread."""

    chunk_size = 2**20


def _register(type_: str, prefix: str) -> None:
    @router.api_route(f"/{prefix}{{ns}}/{{name}}/resolve/{{rev}}/{{path:path}}", methods=["GET", "HEAD"], name=f"resolve_{type_}")
    def resolve(ns: str, name: str, rev: Segment, path: Segment, request: Request, hub: Hub, who: Who) -> FileResponse:
        return _file(hub, hub.repos.get_content(type_, f"{ns}/{name}", who), rev, path, request.method)


for _type, _prefix in URL_PREFIX.items():
    _register(_type, _prefix)


def _file(hub: HubState, repo: Repo, rev: str, path: str, method: str) -> LargeChunks:
    commit = hub.commits.resolve(repo, rev)
    entry = commit.files.get(path)
    if entry is None:
        raise entry_not_found("Entry not found", commit.oid)
    etag = entry.sha256 if entry.lfs else entry.oid
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{etag}"',
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if entry.lfs:
        headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"'}
    if method == "GET" and (path == "config.json" or path.endswith(".gguf")):
        with repo.changing():
            hub.repos.update(repo, downloads=repo.downloads + 1)
    media_type = "text/plain; charset=utf-8" if path.endswith(TEXT_ENDINGS) else "application/octet-stream"
    return LargeChunks(hub.store.blob_path(entry.sha256), headers=headers, media_type=media_type)


@router.get(REPO + "/xet-read-token/{rev}")
@router.get(REPO + "/xet-write-token/{rev}")
def no_xet(address: Address, rev: str) -> None:
    raise Refusal(404, "This Hub has no Xet storage: set HF_HUB_DISABLE_XET=1 to upload large files through LFS")
