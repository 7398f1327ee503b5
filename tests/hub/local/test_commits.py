import threading

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import get_session

from hubquant.hub.local.server import LocalHub


def text(api: HfApi, repo: str, path: str, revision: str = "main") -> str:
    with open(api.hf_hub_download(repo, path, revision=revision)) as file:  # noqa: PTH123
        return file.read()


def test_add_change_delete(api: HfApi, repo: str, add) -> None:
    first = add(repo, {"a.txt": "one", "folder/b.txt": "two", "folder/c.txt": "three"})
    second = api.create_commit(
        repo,
        [CommitOperationAdd("a.txt", b"changed"), CommitOperationDelete("folder/b.txt")],
        commit_message="Second",
        commit_description="why",
    )
    assert sorted(api.list_repo_files(repo)) == [".gitattributes", "a.txt", "folder/c.txt"]
    assert text(api, repo, "a.txt") == "changed"
    assert text(api, repo, "a.txt", first) == "one"
    api.create_commit(repo, [CommitOperationDelete("folder/", is_folder=True)], commit_message="Third")
    assert sorted(api.list_repo_files(repo)) == [".gitattributes", "a.txt"]
    history = api.list_repo_commits(repo)
    assert [commit.title for commit in history] == ["Third", "Second", "Add files", "initial commit"]
    assert history[1].message == "why" and history[1].authors == ["demo-bot"] and history[1].commit_id == second.oid
    assert second.commit_url.endswith(f"/{repo}/commit/{second.oid}")


def test_unchanged_files_make_no_commit(api: HfApi, repo: str, add) -> None:
    files = {"a.txt": "one", "b.bin": b"\0" * 100}
    head = add(repo, files)
    assert add(repo, files) == head
    assert len(api.list_repo_commits(repo)) == 2


def test_stale_parent(api: HfApi, repo: str, add) -> None:
    start = api.model_info(repo).sha
    head = add(repo, {"a.txt": "one"}, parent_commit=start)
    with pytest.raises(HfHubHTTPError, match="The branch was updated") as caught:
        add(repo, {"b.txt": "two"}, parent_commit=start)
    assert caught.value.response.status_code == 412
    assert api.model_info(repo).sha == head
    add(repo, {"b.txt": "two"}, parent_commit=head)


def test_a_failed_commit_changes_nothing(api: HfApi, repo: str) -> None:
    head = api.model_info(repo).sha
    with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
        operations = [CommitOperationAdd("a.txt", b"one"), CommitOperationDelete("missing.txt")]
        api.create_commit(repo, operations, commit_message="Half")
    assert api.model_info(repo).sha == head
    assert api.list_repo_files(repo) == [".gitattributes"]


HEADER = b'{"key":"header","value":{"summary":"x"}}\n'
UNKNOWN = b"0" * 64
MALFORMED = [
    (HEADER + b'{"key":"file","value":{"path":"../a","content":"","encoding":"base64"}}', 422),
    (HEADER + b'{"key":"file","value":{"path":"a/.git/b","content":"","encoding":"base64"}}', 422),
    (HEADER + b'{"key":"file","value":{"path":"a","content":"?","encoding":"base64"}}', 400),
    (HEADER + b'{"key":"lfsFile","value":{"path":"a","algo":"sha256","oid":"' + UNKNOWN + b'"}}', 400),
    (HEADER + b'{"key":"lfsFile","value":{"path":"a","oid":"../../x"}}', 400),
    (b'{"key":"file","value":{"path":"a","content":"","encoding":"base64"}}', 400),
    (HEADER + b"not json", 400),
    (HEADER + b'{"key":"explode","value":{"path":"a"}}', 400),
]


def test_malformed_commits(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    headers = {"Authorization": "Bearer hf_demo_bot", "Content-Type": "application/x-ndjson"}
    for lines, status in MALFORMED:
        answer = get_session().post(f"{local_hub.url}/api/models/{repo}/commit/main", content=lines, headers=headers)
        assert answer.status_code == status, (lines, answer.text)
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_a_file_cannot_be_a_folder(repo: str, add) -> None:
    add(repo, {"a": "one"})
    with pytest.raises(BadRequestError, match="both a file and a folder"):
        add(repo, {"a/b": "two"})


def test_invalid_card_is_refused(api: HfApi, repo: str, add) -> None:
    with pytest.raises(ValueError, match="license"):
        add(repo, {"README.md": "---\nlicense: freeware\n---\n"})
    with pytest.raises(ValueError, match="YAML"):
        add(repo, {"README.md": "---\nlicense: [\n---\n"})
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_who_may_commit(local_hub: LocalHub, other: HfApi, reader: HfApi, anonymous: HfApi, repo: str) -> None:
    for client, status in ((other, 403), (reader, 403), (anonymous, 401)):
        with pytest.raises(HfHubHTTPError) as caught:
            client.create_commit(repo, [CommitOperationAdd("a.txt", b"x")], commit_message="x")
        assert caught.value.response.status_code == status


def test_branches_and_tags(api: HfApi, repo: str, add) -> None:
    head = add(repo, {"a.txt": "one"})
    api.create_branch(repo, branch="feature/x")
    api.create_tag(repo, tag="v1", revision=head, tag_message="first")
    add(repo, {"a.txt": "two"}, revision="feature/x")
    assert text(api, repo, "a.txt", "feature/x") == "two"
    assert text(api, repo, "a.txt", "v1") == text(api, repo, "a.txt", head[:8]) == "one"
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert {ref.name for ref in refs.branches} == {"main", "feature/x"}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", head)]
    for again in (lambda: api.create_branch(repo, branch="feature/x"), lambda: api.create_tag(repo, tag="v1")):
        with pytest.raises(HfHubHTTPError) as caught:
            again()
        assert caught.value.response.status_code == 409
    api.create_branch(repo, branch="feature/x", exist_ok=True)
    api.delete_branch(repo, branch="feature/x")
    api.delete_tag(repo, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="feature/x")
    with pytest.raises(HfHubHTTPError, match="Cannot delete refs/heads/main"):
        api.delete_branch(repo, branch="main")
    with pytest.raises(BadRequestError):
        api.create_tag(repo, tag="bad..name")
    with pytest.raises(RevisionNotFoundError):
        add(repo, {"a.txt": "x"}, revision="nowhere")


def test_super_squash(api: HfApi, repo: str, add) -> None:
    add(repo, {"a.txt": "one"})
    add(repo, {"a.txt": "two"})
    api.super_squash_history(repo, commit_message="All in one")
    assert [commit.title for commit in api.list_repo_commits(repo)] == ["All in one"]
    assert text(api, repo, "a.txt") == "two"


def test_copy_a_regular_file_from_another_repo(api: HfApi, repo: str, add) -> None:
    add(repo, {"tokenizer_config.json": "{}"})
    api.create_repo("demo-bot/copy")
    operation = CommitOperationCopy("tokenizer_config.json", "tokenizer_config.json", src_repo_id=repo, src_repo_type="model")
    api.create_commit("demo-bot/copy", [operation], commit_message="Copy")
    assert text(api, "demo-bot/copy", "tokenizer_config.json") == "{}"


def test_concurrent_commits_all_arrive(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    """Eight writers, five commits each: all files are there and the history is one line of 40."""
    failures: list[Exception] = []

    def write(writer: int) -> None:
        mine = HfApi(endpoint=local_hub.url, token="hf_demo_bot")
        for number in range(5):
            try:
                operation = CommitOperationAdd(f"{writer}/{number}.txt", f"{writer} {number}".encode())
                mine.create_commit(repo, [operation], commit_message=f"{writer} {number}")
            except HfHubHTTPError as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(api.list_repo_files(repo)) == 41
    assert len(api.list_repo_commits(repo)) == 41


def test_of_racing_commits_on_one_parent_one_wins(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    head = api.model_info(repo).sha
    statuses: list[int] = []
    start = threading.Barrier(6)

    def write(writer: int) -> None:
        mine = HfApi(endpoint=local_hub.url, token="hf_demo_bot")
        operation = CommitOperationAdd("a.txt", f"{writer}".encode())
        start.wait()
        try:
            mine.create_commit(repo, [operation], commit_message=f"{writer}", parent_commit=head)
            statuses.append(200)
        except HfHubHTTPError as error:
            statuses.append(error.response.status_code)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 412, 412, 412, 412, 412]
    assert len(api.list_repo_commits(repo)) == 2
