from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubquant.artifact import file_sha256
from hubquant.errors import GatedModel, HubError, HubUnavailable, NotAuthorized, RepoGone, UsageError
from hubquant.hub.client import Hub
from hubquant.hub.failures import HeadMoved
from hubquant.hub.files import File
from hubquant.hub.local.server import LocalHub
from hubquant.hub.retry import Retry


def test_a_rate_limit_is_waited_out_as_asked(hub: Hub, local_hub: LocalHub, slept: list[float]) -> None:
    local_hub.faults.inject("whoami", status=429, headers={"RateLimit": '"api";r=0;t=7'})
    assert hub.whoami()["name"] == "demo-bot"
    assert slept == [8]


def test_the_last_attempt_raises_with_the_number_and_the_cause(local_hub: LocalHub, slept: list[float]) -> None:
    hub = Hub(local_hub.url, "hf_demo_bot", Retry(attempts=3, base_seconds=1), sleep=slept.append)
    local_hub.faults.inject("whoami", status=502, times=99)
    with pytest.raises(HubUnavailable, match=r"failed 3 times, last with HTTP 502.*try again later"):
        hub.whoami()
    assert slept == [1, 2]
    assert len(local_hub.requests.find("whoami")) == 3


def test_nothing_listens(slept: list[float]) -> None:
    hub = Hub("http://127.0.0.1:9", "hf_demo_bot", Retry(attempts=2), sleep=slept.append)
    with pytest.raises(HubUnavailable, match=r"http://127\.0\.0\.1:9 failed 2 times"):
        hub.model_info("a/b")


# -- permanent refusals: one sentence, no second attempt


def refused(local_hub: LocalHub, token: str | bool, do: Callable[[Hub], object]) -> HubError:
    slept: list[float] = []
    with pytest.raises(HubError) as caught:
        do(Hub(local_hub.url, token, sleep=slept.append))
    assert slept == []
    return caught.value


def test_without_a_token(local_hub: LocalHub) -> None:
    error = refused(local_hub, False, lambda hub: hub.check_can_write("demo-bot"))
    assert isinstance(error, NotAuthorized) and "HF_TOKEN" in str(error)


def test_no_token_to_be_found(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(NotAuthorized, match="hf auth login"):
        Hub(local_hub.url).check_can_write("demo-bot")


def test_an_unknown_token(local_hub: LocalHub) -> None:
    error = refused(local_hub, "hf_nobody", lambda hub: hub.check_can_write("demo-bot"))
    assert isinstance(error, NotAuthorized) and "does not know this token" in str(error)


def test_a_read_only_token(local_hub: LocalHub) -> None:
    error = refused(local_hub, "hf_reader", lambda hub: hub.check_can_write("reader"))
    assert isinstance(error, NotAuthorized) and "can only read" in str(error)


def test_somebody_elses_namespace(local_hub: LocalHub) -> None:
    error = refused(local_hub, "hf_demo_bot", lambda hub: hub.check_can_write("demo-org"))
    assert isinstance(error, NotAuthorized) and "'demo-org'" in str(error) and "it can write to: demo-bot" in str(error)


def account(auth: dict[str, object], **more: object) -> dict[str, object]:
    return {"name": "ann", "auth": {"accessToken": {"displayName": "t", **auth}}, **more}


@pytest.mark.parametrize(
    ("me", "namespace", "allowed"),
    [
        (account({"role": "write"}), "ann", True),
        (account({"role": "write"}, orgs=[{"name": "lab", "roleInOrg": "contributor"}]), "lab", True),
        (account({"role": "write"}, orgs=[{"name": "lab", "roleInOrg": "read"}]), "lab", False),
        (account({"role": "fineGrained"}), "ann", True),
        (
            account(
                {"role": "fineGrained", "fineGrained": {"scoped": [{"entity": {"name": "ann"}, "permissions": ["repo.write"]}]}}
            ),
            "ann",
            True,
        ),
        (
            account(
                {"role": "fineGrained", "fineGrained": {"scoped": [{"entity": {"name": "bob"}, "permissions": ["repo.write"]}]}}
            ),
            "ann",
            False,
        ),
        ({"name": "ann", "auth": {"type": "oauth"}}, "ann", True),
    ],
)
def test_who_may_write_where(me: dict[str, object], namespace: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub("http://127.0.0.1:9", "hf_x")
    monkeypatch.setattr(hub, "whoami", lambda: me)
    if allowed:
        hub.check_can_write(namespace)
    else:
        with pytest.raises(NotAuthorized):
            hub.check_can_write(namespace)


def test_a_repo_that_is_not_there(local_hub: LocalHub) -> None:
    error = refused(local_hub, "hf_demo_bot", lambda hub: hub.model_info("demo-org/nothing"))
    assert isinstance(error, RepoGone) and "demo-org/nothing is not on" in str(error)


def test_a_revision_that_is_not_there(local_hub: LocalHub, base_repo: str) -> None:
    error = refused(local_hub, "hf_demo_bot", lambda hub: hub.model_info(base_repo, "b" * 40))
    assert isinstance(error, RepoGone) and "revision" in str(error)


def test_a_private_repo_of_others(local_hub: LocalHub, org: HfApi) -> None:
    org.create_repo("demo-org/secret", private=True)
    error = refused(local_hub, "hf_demo_bot", lambda hub: hub.model_info("demo-org/secret"))
    assert isinstance(error, RepoGone) and "private" in str(error)


def test_a_gated_repo_is_gated_not_gone(local_hub: LocalHub, org: HfApi, base_repo: str) -> None:
    org.update_repo_settings(base_repo, gated="manual")
    error = refused(local_hub, "hf_demo_bot", lambda hub: hub.check_access(base_repo))
    assert isinstance(error, GatedModel) and "accept its terms" in str(error)


def test_writing_where_the_token_may_not(local_hub: LocalHub, base_repo: str) -> None:
    error = refused(local_hub, "hf_demo_bot", lambda hub: hub.set_private(base_repo, True))
    assert isinstance(error, NotAuthorized) and base_repo in str(error)


def test_a_used_up_quota_is_permanent(local_hub: LocalHub) -> None:
    local_hub.faults.inject("repos/create", status=403, message="Private repository storage limit reached")
    error = refused(local_hub, "hf_demo_bot", lambda hub: hub.ensure_repo("demo-bot/x"))
    assert not isinstance(error, NotAuthorized) and "quota" in str(error) and "storage limit reached" in str(error)


def test_a_name_that_no_repo_can_have(hub: Hub) -> None:
    with pytest.raises(UsageError, match="ORGANISATION/NAME"):
        hub.model_info("a//b")


# -- listing and reading


def test_a_listing_goes_on_after_a_failure_and_names_each_model_once(org: HfApi, local_hub: LocalHub, hub: Hub) -> None:
    names = [f"demo-org/m{i}" for i in range(5)]
    for name in names:
        org.create_repo(name)
    local_hub.faults.inject(r"^/api/models$", "GET", status=500, skip=1)  # the second page
    local_hub.state.page_size = 2
    assert sorted(info.id for info in hub.list_models(author="demo-org")) == names
    assert 500 in {request.status for request in local_hub.requests.find(r"^/api/models$")}


def test_read_text(hub: Hub, base_repo: str) -> None:
    head = hub.head(base_repo)
    assert (hub.read_text(base_repo, "LICENSE", head) or "").startswith("Apache")
    assert hub.read_text(base_repo, "missing.json", head) is None


def test_a_card_is_checked(hub: Hub) -> None:
    hub.validate_card("---\nlicense: mit\n---\n# Model\n")
    with pytest.raises(HubError, match="refuses the card"):
        hub.validate_card("---\nlicense: [\n---\n")


# -- changing


def test_ensure_repo_asks_before_it_creates(hub: Hub, local_hub: LocalHub) -> None:
    assert hub.ensure_repo("demo-bot/x")
    assert not hub.ensure_repo("demo-bot/x")
    assert len(local_hub.requests.find("repos/create")) == 1
    assert hub.model_info("demo-bot/x").private


def test_ensure_repo_when_the_answer_is_lost(hub: Hub, local_hub: LocalHub) -> None:
    local_hub.faults.drop("repos/create", when="after")
    hub.ensure_repo("demo-bot/x")
    assert [request.status for request in local_hub.requests.find("repos/create")] == [0, 409]


@pytest.fixture
def files(tmp_path: Path) -> list[File]:
    (tmp_path / "w.safetensors").write_bytes(bytes(range(256)) * 8)
    weights = tmp_path / "w.safetensors"
    return [File.of_bytes("README.md", b"---\nlicense: mit\n---\n"), File(weights.name, weights, file_sha256(weights))]


def commits(hub: Hub, repo_id: str) -> int:
    return len(hub.api.list_repo_commits(repo_id))


@pytest.mark.parametrize("when", ["before", "after"])
def test_commit_with_a_cut_connection_happens_once(hub: Hub, local_hub: LocalHub, files: list[File], when: str) -> None:
    hub.ensure_repo("demo-bot/x")
    parent, before = hub.head("demo-bot/x"), commits(hub, "demo-bot/x")
    local_hub.faults.drop("/commit/main", when="after" if when == "after" else "before")
    commit = hub.commit("demo-bot/x", files, "message", parent)
    assert commit == hub.head("demo-bot/x") != parent
    assert commits(hub, "demo-bot/x") == before + 1
    assert hub.holds("demo-bot/x", commit, files)


def test_commit_on_a_head_that_somebody_moved_overwrites_nothing(hub: Hub, files: list[File]) -> None:
    hub.ensure_repo("demo-bot/x")
    parent = hub.head("demo-bot/x")
    hub.api.upload_file(repo_id="demo-bot/x", path_in_repo="README.md", path_or_fileobj=b"a person's")
    with pytest.raises(HeadMoved, match="somebody else committed"):
        hub.commit("demo-bot/x", files, "message", parent)
    assert hub.read_text("demo-bot/x", "README.md", "main") == "a person's"


def test_a_head_that_lags_behind_is_read_again(hub: Hub, local_hub: LocalHub, files: list[File], slept: list[float]) -> None:
    hub.ensure_repo("demo-bot/x")
    local_hub.faults.inject("/commit/main", status=412, message="The branch was updated since you opened this page.")
    commit = hub.commit("demo-bot/x", files, "message", hub.head("demo-bot/x"))
    assert hub.holds("demo-bot/x", commit, files)
    assert len(slept) == 1


def test_commit_deletes(hub: Hub, files: list[File]) -> None:
    hub.ensure_repo("demo-bot/x")
    first = hub.commit("demo-bot/x", files, "message", hub.head("demo-bot/x"))
    second = hub.commit("demo-bot/x", files[:1], "less", first, delete=["w.safetensors"])
    assert "w.safetensors" not in hub.tree("demo-bot/x", second)
    assert "w.safetensors" in hub.tree("demo-bot/x", first)


def test_commit_is_refused_for_good(hub: Hub, local_hub: LocalHub, base_repo: str, files: list[File], slept: list[float]) -> None:
    with pytest.raises(NotAuthorized):
        hub.commit(base_repo, files, "message", hub.head(base_repo))
    assert slept == []


def test_set_private_and_delete(hub: Hub) -> None:
    hub.ensure_repo("demo-bot/x")
    hub.set_private("demo-bot/x", False)
    assert not hub.model_info("demo-bot/x").private
    hub.delete_repo("demo-bot/x")
    hub.delete_repo("demo-bot/x")
    assert not hub.repo_exists("demo-bot/x")


def test_a_collection_is_created_once(hub: Hub, local_hub: LocalHub) -> None:
    for repo_id in ("demo-bot/x", "demo-bot/y"):
        hub.ensure_repo(repo_id)
        hub.add_to_collection(repo_id, "Quantized", "demo-bot")
        hub.add_to_collection(repo_id, "Quantized", "demo-bot")
    (collection,) = hub.api.list_collections(owner="demo-bot")
    assert sorted(item.item_id for item in hub.api.get_collection(collection.slug).items) == ["demo-bot/x", "demo-bot/y"]
