import json
import socket
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import get_session

from hubquant.errors import HubError, UsageError
from hubquant.hub.local.accounts import User, read_users
from hubquant.hub.local.server import LocalHub, serve


def test_a_folder_is_served_once_at_a_time_and_keeps_everything(tmp_path: Path) -> None:
    with LocalHub(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token="hf_demo_bot")
        api.create_repo("demo-bot/kept", private=True)
        api.create_discussion("demo-bot/kept", "Kept too")
        sha = api.model_info("demo-bot/kept").sha
        with pytest.raises(UsageError, match="already being served"):
            LocalHub(tmp_path).start()
    with LocalHub(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token="hf_demo_bot")
        assert api.model_info("demo-bot/kept").sha == sha and api.model_info("demo-bot/kept").private
        assert [discussion.title for discussion in api.get_repo_discussions("demo-bot/kept")] == ["Kept too"]


def test_test_hooks_are_off_unless_asked_for(tmp_path: Path) -> None:
    with LocalHub(tmp_path) as hub:
        assert get_session().get(f"{hub.url}/_test/requests").status_code == 401  # the page of no repo
        hub.faults.inject(status=500)
        assert get_session().get(f"{hub.url}/api/models").status_code == 200


def test_any_name_of_the_host_works(local_hub: LocalHub) -> None:
    """Addresses in answers use the name that the client uses."""
    local_hub.state.page_size = 1
    local_hub.state.uploads.chunk_size = 50
    endpoint = local_hub.url.replace("127.0.0.1", "localhost")
    api = HfApi(endpoint=endpoint, token="hf_demo_bot")
    assert api.create_repo("demo-bot/one").endpoint == endpoint
    made = api.upload_file(path_or_fileobj=bytes(120), path_in_repo="a.bin", repo_id="demo-bot/one", create_pr=True)
    assert made.commit_url.startswith(endpoint) and made.pr_url == f"{endpoint}/demo-bot/one/discussions/1"
    api.create_repo("demo-bot/two")
    assert len(list(api.list_models())) == 2


def test_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HubError, match=str(port)):
            LocalHub(tmp_path, port=port).start()
    with LocalHub(tmp_path, port=port) as hub:  # the folder was released
        assert hub.url.endswith(f":{port}")


def test_unusable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot keep a local Hub"):
        LocalHub(tmp_path / "file").start()


def test_not_started(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="has not been started"):
        _ = LocalHub(tmp_path).url


def test_users(tmp_path: Path) -> None:
    users = [User("ada", "t1", orgs=("lab",)), User("bob", "t2", role="read")]
    with LocalHub(tmp_path, users=users) as hub:
        ada = HfApi(endpoint=hub.url, token="t1")
        me = ada.whoami()
        assert [org["name"] for org in me["orgs"]] == ["lab"] and me["auth"]["accessToken"]["role"] == "write"
        assert ada.create_repo("lab/model").repo_id == "lab/model"
        assert HfApi(endpoint=hub.url, token="t2").whoami()["auth"]["accessToken"]["role"] == "read"


@pytest.mark.parametrize(
    "users", [[User("api", "t")], [User("a b", "t")], [User("a", "t"), User("A", "u")], [User("a", "t"), User("b", "t")]]
)
def test_impossible_users(tmp_path: Path, users: list[User]) -> None:
    with pytest.raises(UsageError):
        LocalHub(tmp_path, users=users).start()


def test_users_file(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    path.write_text(json.dumps([{"name": "ada", "token": "t", "orgs": ["lab"]}]))
    assert read_users(path) == (User("ada", "t", "write", ("lab",)),)
    path.write_text(json.dumps([{"name": "ada", "token": "t", "role": "admin"}]))
    with pytest.raises(UsageError, match="role"):
        read_users(path)
    path.write_text("[")
    with pytest.raises(UsageError, match="users"):
        read_users(path)


def test_known_tokens_stay_on_loopback(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"users\.json"):
        serve(tmp_path, "0.0.0.0", 0)


def test_answers_carry_what_the_client_needs(local_hub: LocalHub) -> None:
    answer = get_session().get(f"{local_hub.url}/api/models/demo-bot/none", headers={"Authorization": "Bearer hf_demo_bot"})
    assert answer.status_code == 404 and answer.headers["X-Error-Code"] == "RepoNotFound"
    assert answer.headers["X-Error-Message"] == answer.json()["error"] == "Repository not found"
    assert get_session().get(f"{local_hub.url}/api/models/demo-bot/none").status_code == 401
    assert get_session().get(f"{local_hub.url}/api/agent-harnesses").status_code == 404
    assert get_session().get(f"{local_hub.url}/api/models?limit=0").status_code == 400
    assert "HF_HUB_DISABLE_XET=1" in get_session().get(f"{local_hub.url}/api/models/a/b/xet-write-token/main").json()["error"]
    for path in ("/api/models/gpt2", "/gpt2/resolve/main/config.json"):
        wrong = get_session().get(local_hub.url + path, headers={"Authorization": "Bearer hf_wrong"})
        assert wrong.status_code == 401 and "X-Error-Code" not in wrong.headers
