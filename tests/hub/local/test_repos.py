from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import get_session

from hubquant.hub.local.server import LocalHub


def test_create_every_type(api: HfApi) -> None:
    for repo_type in ("model", "dataset", "kernel"):
        assert api.create_repo("demo-bot/thing", repo_type=repo_type).repo_type == repo_type
    assert api.create_repo("demo-bot/thing", repo_type="space", space_sdk="gradio").repo_id == "demo-bot/thing"
    assert api.space_info("demo-bot/thing").sdk == "gradio"
    assert api.dataset_info("demo-bot/thing").siblings[0].rfilename == ".gitattributes"
    assert api.kernel_info("demo-bot/thing").author == "demo-bot"


def test_create_without_namespace_is_the_callers(api: HfApi) -> None:
    assert api.create_repo("mine").repo_id == "demo-bot/mine"


def test_create_twice(api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo(repo.upper().replace("DEMO-BOT", "demo-bot"))
    assert caught.value.response.status_code == 409
    assert api.create_repo(repo, exist_ok=True).repo_id == repo


def test_bad_names_are_refused(local_hub: LocalHub) -> None:
    for name in ("a..b", "a--b", "-a", "a" * 97, "a b", "x.git"):
        answer = get_session().post(
            f"{local_hub.url}/api/repos/create", json={"name": name}, headers={"Authorization": "Bearer hf_demo_bot"}
        )
        assert answer.status_code == 400
        assert name in answer.json()["error"]


def test_who_may_create(other: HfApi, reader: HfApi, anonymous: HfApi) -> None:
    for client, namespace, status in ((other, "demo-bot", 403), (reader, "reader", 403), (anonymous, "demo-bot", 401)):
        with pytest.raises(HfHubHTTPError) as caught:
            client.create_repo(f"{namespace}/new")
        assert caught.value.response.status_code == status


def test_ids_are_case_insensitive(api: HfApi, repo: str) -> None:
    assert api.model_info("Demo-Bot/ONE").id == repo


def test_missing_repo(api: HfApi, anonymous: HfApi) -> None:
    for client in (api, anonymous):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("demo-bot/none")
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("gpt2")
        with pytest.raises(RepositoryNotFoundError):
            client.list_repo_files("gpt2")
        assert not client.repo_exists("demo-bot/none")


def test_unknown_token(local_hub: LocalHub, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(endpoint=local_hub.url, token="hf_wrong").whoami()
    assert caught.value.response.status_code == 401


def test_private(api: HfApi, other: HfApi, anonymous: HfApi) -> None:
    api.create_repo("demo-bot/secret", private=True)
    assert api.model_info("demo-bot/secret").private
    assert not other.repo_exists("demo-bot/secret")
    assert not anonymous.repo_exists("demo-bot/secret")
    assert [info.id for info in other.list_models(author="demo-bot")] == []
    api.update_repo_settings("demo-bot/secret", private=False)
    assert other.repo_exists("demo-bot/secret")


def test_gated(api: HfApi, other: HfApi, anonymous: HfApi, local_hub: LocalHub, repo: str, tmp_path: Path) -> None:
    api.update_repo_settings(repo, gated="manual")
    assert other.model_info(repo).gated == "manual"
    api.hf_hub_download(repo, ".gitattributes")
    for client in (other, anonymous):
        with pytest.raises(GatedRepoError):
            client.hf_hub_download(repo, ".gitattributes", cache_dir=tmp_path)
        with pytest.raises(GatedRepoError):
            client.auth_check(repo)
    get_session().post(f"{local_hub.url}/{repo}/ask-access", headers={"Authorization": "Bearer hf_demo_org"}).raise_for_status()
    assert [request.username for request in api.list_pending_access_requests(repo)] == ["demo-org"]
    with pytest.raises(GatedRepoError):
        other.auth_check(repo)
    api.accept_access_request(repo, "demo-org")
    other.auth_check(repo)
    api.cancel_access_request(repo, "demo-org")
    with pytest.raises(GatedRepoError):
        other.auth_check(repo)
    api.grant_access(repo, "demo-org")
    other.auth_check(repo)


def test_automatic_gate(api: HfApi, other: HfApi, local_hub: LocalHub, repo: str) -> None:
    api.update_repo_settings(repo, gated="auto")
    get_session().post(f"{local_hub.url}/{repo}/ask-access", headers={"Authorization": "Bearer hf_demo_org"}).raise_for_status()
    other.auth_check(repo)


def test_write_check(api: HfApi, other: HfApi, reader: HfApi, repo: str) -> None:
    api.auth_check(repo, write=True)
    reader.auth_check(repo)
    for client in (other, reader):
        with pytest.raises(HfHubHTTPError) as caught:
            client.auth_check(repo, write=True)
        assert caught.value.response.status_code == 403


def test_move(api: HfApi, repo: str) -> None:
    sha = api.model_info(repo).sha
    api.move_repo(repo, "demo-bot/two")
    assert api.model_info("demo-bot/two").sha == sha
    assert api.model_info(repo).id == "demo-bot/two"  # the old name leads to the new one
    api.create_repo(repo)
    assert api.model_info(repo).id == repo  # until somebody takes it
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.move_repo(repo, "demo-bot/two")
    with pytest.raises(HfHubHTTPError):
        api.move_repo(repo, "demo-org/two")


def test_delete(api: HfApi, other: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError):
        other.delete_repo(repo)
    api.delete_repo(repo)
    assert not api.repo_exists(repo)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(repo)
    api.delete_repo(repo, missing_ok=True)
    api.create_repo(repo)


def test_bad_settings(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    headers = {"Authorization": "Bearer hf_demo_bot"}
    for body in ({"visibility": "secret"}, {"gated": "sometimes"}):
        assert get_session().put(f"{local_hub.url}/api/models/{repo}/settings", json=body, headers=headers).status_code == 400
    assert not api.model_info(repo).private


def test_likes(api: HfApi, anonymous: HfApi, local_hub: LocalHub, repo: str) -> None:
    get_session().post(
        f"{local_hub.url}/api/models/{repo}/like", headers={"Authorization": "Bearer hf_demo_bot"}
    ).raise_for_status()
    assert [user.username for user in api.list_repo_likers(repo)] == ["demo-bot"]
    assert api.list_liked_repos("demo-bot").models == [repo]
    assert api.model_info(repo).likes == 1
    api.unlike(repo)
    assert api.model_info(repo).likes == 0
    with pytest.raises(HfHubHTTPError):
        anonymous.unlike(repo)


def test_unknown_expand_is_refused(api: HfApi, repo: str) -> None:
    with pytest.raises(BadRequestError):
        api.model_info(repo, expand=["nonsense"])  # type: ignore[list-item]
    assert api.model_info(repo, expand=["inference", "likes"]).likes == 0
