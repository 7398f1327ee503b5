from html.parser import HTMLParser

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import get_session, httpx

from hubquant.hub.local.routes.pages import human_size
from hubquant.hub.local.server import LocalHub

EVIL = "<script>alert(1)</script>"


class Seen(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def get(hub: LocalHub, path: str) -> httpx.Response:
    return get_session().get(hub.url + path, headers={"Accept": "text/html"})


def test_every_link_of_a_repo_page_leads_somewhere(local_hub: LocalHub, api: HfApi, repo: str, add) -> None:
    add(repo, {"README.md": "---\nlicense: mit\n---\n# Card\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", "folder/a #1.bin": bytes(1500)})
    api.create_discussion(repo, "A question")
    made = api.create_collection("Things", description="all")
    api.add_collection_item(made.slug, repo, "model", note="good")
    page = get(local_hub, f"/{repo}")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "<h1>Card</h1>" in page.text and "license: mit" in page.text and "1.5 kB" in page.text and "<td>1</td>" in page.text
    for start in ("/", "/demo-bot", f"/{repo}", f"/{repo}/tree/main", f"/{repo}/discussions/1", f"/collections/{made.slug}"):
        own = [link for link in Seen(get(local_hub, start).text).links if link.startswith("/")]
        assert own
        for link in own:
            assert get(local_hub, link).status_code == 200, (start, link)
    assert get(local_hub, f"/{repo}/commit/{api.model_info(repo).sha}").status_code == 200


def test_nothing_in_a_repo_becomes_markup(local_hub: LocalHub, api: HfApi, repo: str, add) -> None:
    card = f"---\ntags: ['{EVIL}']\n---\n{EVIL}\n\n[x](javascript:alert(1)) <img src=x onerror=alert(1)>\n"
    add(repo, {"README.md": card, f"{EVIL.replace('/', '')}.txt": "x"}, message=EVIL)
    api.create_discussion(repo, EVIL, description=EVIL)
    for path in ("/", f"/{repo}", f"/{repo}/discussions/1"):
        page = get(local_hub, path)
        seen = Seen(page.text)
        assert "script" not in seen.tags and "img" not in seen.tags
        assert not any(link.startswith("javascript") for link in seen.links)
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_html_files_are_not_served_as_pages(local_hub: LocalHub, repo: str, add) -> None:
    add(repo, {"index.html": EVIL})
    answer = get(local_hub, f"/{repo}/resolve/main/index.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_private_repos_have_no_page(local_hub: LocalHub, api: HfApi) -> None:
    api.create_repo("demo-bot/hidden", private=True)
    assert get(local_hub, "/demo-bot/hidden").status_code == 401
    assert "hidden" not in get(local_hub, "/").text + get(local_hub, "/demo-bot").text
    assert get(local_hub, "/nobody").status_code == 404


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (7_348_736, "7.35 MB"), (5 * 10**9, "5 GB"), (123 * 10**12, "123 TB")],
)
def test_sizes(size: int, shown: str) -> None:
    assert human_size(size) == shown
