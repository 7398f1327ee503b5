"""Plain pages for people: the list of models, a repo with its files and card, a discussion, a collection. No scripts."""

from html import escape
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from markdown_it import MarkdownIt

from hubquant.hub.local import cards
from hubquant.hub.local.accounts import Caller
from hubquant.hub.local.answers import not_found
from hubquant.hub.local.commits import MAIN, Commit
from hubquant.hub.local.derived import CARD_LIMIT_BYTES
from hubquant.hub.local.repos import URL_PREFIX, Repo
from hubquant.hub.local.routes.common import Hub, Segment, Who
from hubquant.hub.local.state import HubState

router = APIRouter(default_response_class=HTMLResponse)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:"
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.3rem .8rem;text-align:left}
td.n{text-align:right}pre{background:#f5f5f5;padding:.8rem;overflow-x:auto}
.tag{background:#eef;border-radius:.3rem;padding:.1rem .4rem}"""


def _page(title: str, content: str) -> HTMLResponse:
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = f'<p><a href="/">local Hub</a></p><h1>{escape(title)}</h1>{content}</html>'
    return HTMLResponse(head + body, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})


def _link(path: str, text: str) -> str:
    return f'<a href="/{quote(path)}">{escape(text)}</a>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{_cells(row)}</tr>' for row in rows)}</table>"


def _cells(row: list[str]) -> str:
    return "".join(f'<td class="n">{cell}</td>' if cell[:1].isdigit() else f"<td>{cell}</td>" for cell in row)


def _tags(tags: tuple[str, ...]) -> str:
    return " ".join(f'<span class="tag">{escape(tag)}</span>' for tag in tags)


def human_size(size_bytes: int) -> str:
    """Powers of 1000, as the Hub shows sizes."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.3g} {unit}" if size < 100 else f"{size:.0f} {unit}"
    return f"{size / 1000:.3g} TB"


@router.get("/")
def index(hub: Hub, who: Who) -> HTMLResponse:
    repos = [repo for repo in hub.repos if repo.type == "model" and repo.readable_by(who)]
    return _page("Models on this Hub", _repo_table(hub, repos))


@router.get("/{ns}")
def namespace(ns: str, hub: Hub, who: Who) -> HTMLResponse:
    owner = hub.accounts.namespace(ns)
    if owner is None:
        raise not_found(f"There is no account {ns!r} on this Hub")
    repos = [repo for repo in hub.repos if repo.namespace == owner and repo.readable_by(who)]
    return _page(owner, _repo_table(hub, repos))


def _repo_table(hub: HubState, repos: list[Repo]) -> str:
    newest = sorted(repos, key=lambda repo: repo.created_at, reverse=True)
    rows = [[_link(repo.url_path, repo.id), escape(repo.created_at), _tags(hub.infos.derived(repo).tags)] for repo in newest]
    return _table(["repo", "created", "tags"], rows) if rows else "<p>Nothing here yet.</p>"


def _register(type_: str, prefix: str) -> None:
    one = f"/{prefix}{{ns}}/{{name}}"

    @router.get(one, name=f"page_{type_}")
    def repo_page(ns: str, name: str, hub: Hub, who: Who) -> HTMLResponse:
        return _repo_page(hub, type_, f"{ns}/{name}", "main", who)

    @router.get(one + "/tree/{rev}", name=f"page_{type_}_at")
    @router.get(one + "/commit/{rev}", name=f"page_{type_}_commit")
    def repo_page_at(ns: str, name: str, rev: Segment, hub: Hub, who: Who) -> HTMLResponse:
        return _repo_page(hub, type_, f"{ns}/{name}", rev, who)

    @router.get(one + "/discussions/{num:int}", name=f"page_{type_}_discussion")
    def discussion_page(ns: str, name: str, num: int, hub: Hub, who: Who) -> HTMLResponse:
        return _discussion_page(hub, hub.repos.get(type_, f"{ns}/{name}", who), num)


@router.get("/collections/{ns}/{slug}")
def collection_page(ns: str, slug: str, hub: Hub, who: Who) -> HTMLResponse:
    record = hub.collections.get(ns, slug, who)
    rows = []
    for item in record["items"]:
        repo = hub.repos.find(item["type"], item["id"])
        if repo is not None and repo.readable_by(who):
            rows.append([_link(repo.url_path, repo.id), escape(item.get("note", {}).get("text", ""))])
    return _page(record["title"], f"<p>{escape(record['description'] or '')}</p>" + _table(["repo", "note"], rows))


for _type, _prefix in sorted(URL_PREFIX.items(), key=lambda pair: pair[1], reverse=True):
    _register(_type, _prefix)


def _repo_page(hub: HubState, type_: str, repo_id: str, rev: str, who: Caller) -> HTMLResponse:
    repo = hub.repos.get(type_, repo_id, who)
    commit = hub.commits.resolve(repo, rev)
    rows = [
        [_link(f"{repo.url_path}/resolve/{commit.oid}/{path}", path), human_size(entry.size), "LFS" if entry.lfs else ""]
        for path, entry in commit.files.items()
    ]
    about = f"<p>{escape(repo.type)} at commit <code>{commit.oid[:12]}</code>, {escape(commit.date)}: {escape(commit.title)}</p>"
    tags = f"<p>{_tags(hub.infos.derived(repo, commit).tags)}</p>"
    return _page(repo.id, about + tags + _table(["file", "size", ""], rows) + _discussion_list(hub, repo, rev) + _card(hub, commit))


def _discussion_list(hub: HubState, repo: Repo, rev: str) -> str:
    records = hub.discussions.all(repo) if hub.commits.find_ref(repo, rev) == MAIN else []
    page = f"{repo.url_path}/discussions"
    rows = [[_link(f"{page}/{one['num']}", one["title"]), escape(one["status"]), escape(one["author"])] for one in records]
    return _table(["discussion", "status", "by"], rows) if rows else ""


def _card(hub: HubState, commit: Commit) -> str:
    entry = commit.files.get("README.md")
    if entry is None:
        return "<p>No model card.</p>"
    text = hub.store.read(entry.sha256, CARD_LIMIT_BYTES).decode("utf-8", "replace")
    metadata = cards.FENCE.match(text)
    block = f"<pre>{escape(metadata.group(1))}</pre>" if metadata else ""
    return f"<hr>{block}{_markdown(cards.body(text))}"


def _markdown(text: str) -> str:
    """HTML in the text is shown, not obeyed."""
    return str(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))


def _discussion_page(hub: HubState, repo: Repo, num: int) -> HTMLResponse:
    record = hub.discussions.get(repo, num)
    parts = [f"<p>{_link(repo.url_path, repo.id)} · {escape(record['status'])} · by {escape(record['author'])}</p>"]
    return _page(f"{record['title']} #{num}", "".join([*parts, *(_event(event) for event in record["events"])]))


def _event(event: dict[str, Any]) -> str:
    who = f"<p><b>{escape(event['author']['name'])}</b> {escape(event['createdAt'])}</p>"
    data = event["data"]
    match event["type"]:
        case "comment":
            return who + _markdown(data["latest"]["raw"])
        case "commit":
            return f"{who}<p>commit <code>{escape(data['oid'][:12])}</code> {escape(data['subject'])}</p>"
        case "status-change":
            return f"{who}<p>changed the status to {escape(data['status'])}</p>"
    return f"{who}<p>renamed “{escape(data['from'])}” to “{escape(data['to'])}”</p>"
