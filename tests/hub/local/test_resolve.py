import pytest
from huggingface_hub import HfApi, hf_hub_url, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import get_session

from hubquant.hub.local.server import LocalHub

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def url(local_hub: LocalHub, repo: str, add) -> str:
    add(repo, {"data.bin": CONTENT, "folder/note.txt": "hello"})
    return f"{local_hub.url}/{repo}/resolve/main/data.bin"


def test_ranges(url: str) -> None:
    size = len(CONTENT)
    for asked, start, end in (("0-9", 0, 10), ("100-", 100, size), ("-7", size - 7, size), ("10000-99999", 10000, size)):
        answer = get_session().get(url, headers={"Range": f"bytes={asked}"})
        assert answer.status_code == 206
        assert answer.content == CONTENT[start:end]
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"


def test_range_beyond_the_end(url: str) -> None:
    answer = get_session().get(url, headers={"Range": f"bytes={len(CONTENT)}-"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


def test_headers(api: HfApi, url: str, repo: str) -> None:
    answer = get_session().head(url)
    info = api.get_paths_info(repo, ["data.bin"])[0]
    assert answer.status_code == 200 and answer.content == b""
    assert answer.headers["X-Repo-Commit"] == api.model_info(repo).sha
    assert answer.headers["ETag"] == answer.headers["X-Linked-ETag"] == f'"{info.lfs.sha256}"'
    assert answer.headers["Content-Length"] == answer.headers["X-Linked-Size"] == str(len(CONTENT))
    assert answer.headers["Accept-Ranges"] == "bytes"
    note = get_session().get(url.replace("data.bin", "folder/note.txt"))
    assert note.text == "hello"
    assert note.headers["ETag"] == f'"{api.get_paths_info(repo, ["folder/note.txt"])[0].blob_id}"'
    assert "X-Linked-ETag" not in note.headers


def test_missing_file_still_names_the_commit(api: HfApi, url: str, repo: str) -> None:
    answer = get_session().head(url.replace("data.bin", "nothing"))
    assert answer.status_code == 404
    assert answer.headers["X-Error-Code"] == "EntryNotFound"
    assert answer.headers["X-Repo-Commit"] == api.model_info(repo).sha
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(repo, "nothing")
    assert not api.file_exists(repo, "nothing")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(repo, "data.bin", revision="nowhere")


def test_snapshot_and_checksums(api: HfApi, url: str, repo: str, tmp_path) -> None:
    folder = snapshot_download(repo, endpoint=api.endpoint, token="hf_demo_bot", local_dir=tmp_path / "copy")
    checked = api.verify_repo_checksums(repo, local_dir=folder)
    assert checked.checked_count == 3 and checked.mismatches == [] and checked.missing_paths == []


def test_pages_of_the_tree(api: HfApi, local_hub: LocalHub, repo: str, add) -> None:
    add(repo, {f"folder/{number:02d}.txt": "x" for number in range(7)})
    local_hub.state.page_size = 3
    assert len([entry for entry in api.list_repo_tree(repo, recursive=True) if hasattr(entry, "size")]) == 8
    assert [entry.path for entry in api.list_repo_tree(repo, "folder")] == [f"folder/{number:02d}.txt" for number in range(7)]
    assert len(local_hub.requests.find("/tree/")) == 6
    entries = {entry.path: entry for entry in api.list_repo_tree(repo, expand=True)}
    assert entries["folder"].last_commit.title == "Add files"
    assert entries[".gitattributes"].last_commit.title == "initial commit"
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "nowhere"))


def test_pages_of_the_history(api: HfApi, local_hub: LocalHub, repo: str, add) -> None:
    for number in range(4):
        add(repo, {"a.txt": f"{number}"}, message=f"{number}")
    local_hub.state.page_size = 2
    assert [commit.title for commit in api.list_repo_commits(repo, formatted=True)] == ["3", "2", "1", "0", "initial commit"]


def test_missing_paths_are_left_out(api: HfApi, url: str, repo: str) -> None:
    found = api.get_paths_info(repo, ["data.bin", "nothing", "folder"])
    assert [entry.path for entry in found] == ["data.bin", "folder"]


def test_other_types_and_pull_request_revisions(api: HfApi, local_hub: LocalHub) -> None:
    api.create_repo("demo-bot/data", repo_type="dataset")
    made = api.upload_file(
        path_or_fileobj=b"hi", path_in_repo="x.txt", repo_id="demo-bot/data", repo_type="dataset", create_pr=True
    )
    assert made.pr_revision == "refs/pr/1"
    url = hf_hub_url("demo-bot/data", "x.txt", repo_type="dataset", revision="refs/pr/1", endpoint=local_hub.url)
    assert "refs%2Fpr%2F1" in url
    assert get_session().get(url).text == "hi"


def test_unknown_and_odd_paths(local_hub: LocalHub, repo: str, add) -> None:
    add(repo, {"folder/with space & ünïcode%41.txt": "odd"})
    quoted = "folder/with%20space%20%26%20%C3%BCn%C3%AFcode%2541.txt"
    assert get_session().get(f"{local_hub.url}/{repo}/resolve/main/{quoted}").text == "odd"
    for path in ("../../../etc/passwd", "%2e%2e/%2e%2e/users.json", "/etc/passwd"):
        assert get_session().get(f"{local_hub.url}/{repo}/resolve/main/{path}").status_code == 404
