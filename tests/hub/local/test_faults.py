import time

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, httpx, parse_ratelimit_headers

from hubquant.hub.local.faults import Faults
from hubquant.hub.local.server import LocalHub


def test_skip_and_times() -> None:
    faults = Faults()
    faults.inject("/b$", "get|head", skip=1, times=2)
    hits = [
        faults.take(method, path) is not None
        for method, path in [("POST", "/b"), ("GET", "/a"), *[("GET", "/b")] * 4, ("HEAD", "/b")]
    ]
    assert hits == [False, False, False, True, True, False, False]
    assert list(faults) == []
    faults.inject(status=429)
    faults.clear()
    assert faults.take("GET", "/") is None


def test_status_with_headers(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    local_hub.faults.inject(f"/api/models/{repo}$", status=429, headers={"RateLimit": '"api";r=0;t=7'}, skip=1)
    api.model_info(repo)
    with pytest.raises(HfHubHTTPError) as caught:
        api.model_info(repo)
    limit = parse_ratelimit_headers(caught.value.response.headers)
    assert caught.value.response.status_code == 429 and limit.remaining == 0 and limit.reset_in_seconds == 7
    api.model_info(repo)
    assert [request.status for request in local_hub.requests.find(f"/api/models/{repo}$")] == [200, 429, 200]


def test_dropped_before_it_is_handled(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    head = api.model_info(repo).sha
    local_hub.faults.drop("/commit/main", "POST")
    with pytest.raises(httpx.TransportError):
        api.create_commit(repo, [CommitOperationAdd("a.txt", b"x")], commit_message="x")
    assert api.model_info(repo).sha == head
    assert local_hub.requests.find("/commit/")[0].status == 0


def test_dropped_after_it_was_handled(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    head = api.model_info(repo).sha
    local_hub.faults.drop("/commit/main", "POST", when="after")
    with pytest.raises(httpx.TransportError):
        api.create_commit(repo, [CommitOperationAdd("a.txt", b"x")], commit_message="x")
    assert api.model_info(repo).sha != head
    assert "a.txt" in api.list_repo_files(repo)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [429, 500, 0])
def test_a_large_upload_hit_at_every_call(api: HfApi, local_hub: LocalHub, repo: str, status: int) -> None:
    """Whatever one call of an upload meets, the client ends with an error or a whole commit, and a second try completes it."""
    calls = ["validate-yaml", "preupload", "objects/batch", "_lfs/.*/whole", "_lfs/.*/verify", "/commit/"]
    for number, path in enumerate(calls):
        if status:
            local_hub.faults.inject(path, status=status, headers={"Retry-After": "0"})
        else:
            local_hub.faults.drop(path)
        files = {"README.md": b"---\nlicense: mit\n---\n", f"{number}.bin": bytes([status % 250, number]) * 1000}
        for _ in range(2):
            try:
                api.create_commit(repo, [CommitOperationAdd(*pair) for pair in files.items()], commit_message=f"{number}")
                break
            except (HfHubHTTPError, httpx.TransportError, RuntimeError):
                continue
        assert list(local_hub.faults) == []
        assert f"{number}.bin" in api.list_repo_files(repo)


def test_delay(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    local_hub.faults.inject("/refs", status=0, delay_seconds=0.2)
    start = time.monotonic()
    api.list_repo_refs(repo)
    assert time.monotonic() - start >= 0.2


def test_over_http(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    test = f"{local_hub.url}/_test"
    get_session().delete(f"{test}/requests").raise_for_status()
    get_session().post(f"{test}/faults", json={"path": "/refs", "status": 500, "times": 2}).raise_for_status()
    assert [fault["times"] for fault in get_session().get(f"{test}/faults").json()] == [2]
    with pytest.raises(HfHubHTTPError):
        api.list_repo_refs(repo)
    get_session().delete(f"{test}/faults").raise_for_status()
    api.list_repo_refs(repo)
    logged = get_session().get(f"{test}/requests").json()
    assert [(line["method"], line["path"], line["status"]) for line in logged] == [
        ("GET", f"/api/models/{repo}/refs", 500),
        ("GET", f"/api/models/{repo}/refs", 200),
    ]
    assert get_session().post(f"{test}/faults", json={"pathh": "x"}).status_code == 400
    assert get_session().post(f"{test}/settings", json={"page_size": 3}).json()["page_size"] == 3


def test_rate_limit(api: HfApi, other: HfApi, local_hub: LocalHub, repo: str) -> None:
    answer = get_session().get(f"{local_hub.url}/api/models")
    limit = parse_ratelimit_headers(answer.headers)
    assert limit.limit == 100_000 and limit.window_seconds == 300 and answer.headers["X-Request-Id"]
    local_hub.state.rate_limit.quota = len(local_hub.requests.find()) + 2
    with pytest.raises(HfHubHTTPError, match="429"):
        for _ in range(10):
            api.model_info(repo)
    other.model_info(repo)  # each caller has a quota of its own


def test_shifted_clock(api: HfApi, local_hub: LocalHub) -> None:
    local_hub.state.clock.offset_seconds = -3 * 3600
    api.create_repo("demo-bot/old")
    local_hub.state.clock.offset_seconds = 0
    api.create_repo("demo-bot/new")
    age = api.model_info("demo-bot/new").created_at - api.model_info("demo-bot/old").created_at
    assert 3 * 3600 <= age.total_seconds() < 3 * 3600 + 60
