import warnings

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from hubquant.hub.local.server import LocalHub


def test_a_discussion(api: HfApi, other: HfApi, anonymous: HfApi, reader: HfApi, repo: str) -> None:
    opened = other.create_discussion(repo, "A question", description="Why?")
    assert (opened.num, opened.author, opened.status, opened.is_pull_request) == (1, "demo-org", "open", False)
    comment = api.comment_discussion(repo, 1, "Because")
    api.edit_discussion_comment(repo, 1, comment.id, "Because of this")
    other.rename_discussion(repo, 1, "A better question")
    api.change_discussion_status(repo, 1, "closed", comment="Done")
    read = anonymous.get_discussion_details(repo, 1)
    assert read.title == "A better question" and read.status == "closed"
    assert [event.type for event in read.events] == ["comment", "comment", "title-change", "status-change", "comment"]
    assert read.events[1].content == "Because of this" and read.events[1].edited
    for client in (anonymous, reader):
        with pytest.raises(HfHubHTTPError):
            client.comment_discussion(repo, 1, "Me too")
    with pytest.raises(HfHubHTTPError):
        other.edit_discussion_comment(repo, 1, comment.id, "Not mine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert api.hide_discussion_comment(repo, 1, comment.id).hidden
    with pytest.raises(HfHubHTTPError):
        api.get_discussion_details(repo, 2)


def test_lists(api: HfApi, other: HfApi, local_hub: LocalHub, repo: str) -> None:
    for number in range(5):
        (api if number % 2 else other).create_discussion(repo, f"{number}")
    api.create_pull_request(repo, "change")
    api.change_discussion_status(repo, 1, "closed")
    local_hub.state.page_size = 2
    assert [d.num for d in api.get_repo_discussions(repo)] == [6, 5, 4, 3, 2, 1]
    assert [d.num for d in api.get_repo_discussions(repo, author="demo-org", discussion_status="open")] == [5, 3]
    assert [d.num for d in api.get_repo_discussions(repo, discussion_type="pull_request")] == [6]
    assert [d.num for d in api.get_repo_discussions(repo, discussion_status="closed")] == [1]


def test_a_pull_request_by_commit(api: HfApi, other: HfApi, repo: str, add) -> None:
    add(repo, {"a.txt": "one\n", "b.txt": "b"})
    operations = [CommitOperationAdd("a.txt", b"two\n"), CommitOperationAdd("c.bin", b"\0")]
    made = other.create_commit(repo, operations, commit_message="Better", commit_description="Much", create_pr=True)
    assert made.pr_num == 1 and made.pr_revision == "refs/pr/1"
    other.create_commit(repo, [CommitOperationAdd("d.txt", b"d")], commit_message="More", revision="refs/pr/1")
    details = api.get_discussion_details(repo, 1)
    assert details.status == "open" and details.conflicting_files == [] and details.target_branch == "refs/heads/main"
    assert [event.type for event in details.events] == ["comment", "commit", "commit"]
    assert "-one\n+two" in details.diff and "oid sha256:" in details.diff
    assert "c.bin" not in api.list_repo_files(repo)
    assert "c.bin" in api.list_repo_files(repo, revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError):
        other.merge_pull_request(repo, 1)  # its author has no right to write
    add(repo, {"b.txt": "changed meanwhile"})
    api.merge_pull_request(repo, 1, comment="Thanks")
    assert set(api.list_repo_files(repo)) == {".gitattributes", "a.txt", "b.txt", "c.bin", "d.txt"}
    merged = api.get_discussion_details(repo, 1)
    assert merged.status == "merged" and merged.merge_commit_oid == api.model_info(repo).sha
    assert api.list_repo_commits(repo)[0].title == "Better (#1)"
    with pytest.raises(BadRequestError):
        api.merge_pull_request(repo, 1)


def test_conflict(api: HfApi, repo: str, add) -> None:
    add(repo, {"a.txt": "one"})
    add(repo, {"a.txt": "theirs"}, create_pr=True)
    head = add(repo, {"a.txt": "ours"})
    assert api.get_discussion_details(repo, 1).conflicting_files == ["a.txt"]
    with pytest.raises(BadRequestError, match=r"conflicts in a\.txt"):
        api.merge_pull_request(repo, 1)
    assert api.model_info(repo).sha == head


def test_a_draft_is_opened_before_it_is_merged(api: HfApi, repo: str, add) -> None:
    draft = api.create_pull_request(repo, "Draft")
    assert draft.status == "draft" and draft.git_reference == "refs/pr/1"
    add(repo, {"a.txt": "x"}, revision=draft.git_reference)
    with pytest.raises(BadRequestError, match="draft"):
        api.merge_pull_request(repo, 1)
    api.change_discussion_status(repo, 1, "open")
    api.merge_pull_request(repo, 1)
    assert "a.txt" in api.list_repo_files(repo)


def test_pull_request_from_an_older_parent(api: HfApi, repo: str, add) -> None:
    start = api.model_info(repo).sha
    add(repo, {"a.txt": "one"})
    add(repo, {"b.txt": "two"}, create_pr=True, parent_commit=start)
    assert "a.txt" not in api.list_repo_files(repo, revision="refs/pr/1")
    api.merge_pull_request(repo, 1)
    assert set(api.list_repo_files(repo)) == {".gitattributes", "a.txt", "b.txt"}


def test_read_tokens_cannot_open_pull_requests(reader: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        reader.create_commit(repo, [CommitOperationAdd("a", b"x")], commit_message="x", create_pr=True)
    assert caught.value.response.status_code == 403


def test_a_pull_request_exists_once_its_ref_does(api: HfApi, local_hub: LocalHub, repo: str, add) -> None:
    """A Hub killed between the two writes leaves a record without a ref: nobody sees it and its number is not used again."""
    add(repo, {"a.txt": "x"}, create_pr=True)
    found = local_hub.state.repos.find("model", repo)
    local_hub.state.repos.set_refs(found, {"refs/pr/1": None})
    assert list(api.get_repo_discussions(repo)) == []
    with pytest.raises(HfHubHTTPError):
        api.get_discussion_details(repo, 1)
    add(repo, {"a.txt": "x"}, create_pr=True)
    assert [discussion.num for discussion in api.get_repo_discussions(repo)] == [2]
