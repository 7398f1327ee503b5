import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, httpx

from hubquant.hub import retry
from hubquant.hub.local.server import LocalHub
from hubquant.hub.retry import BODY_WAIT_CAP_SECONDS, Retry, Session, Transient, asked_seconds, install

OURS = {"user-agent": "hubquant/0.1.0; hf_hub/2.4.0"}


def answering(status: int, headers: dict[str, str] | None = None) -> Session:
    return Session(transport=httpx.MockTransport(lambda request: httpx.Response(status, headers=headers)))


def test_waits_double_up_to_the_cap() -> None:
    policy = Retry(base_seconds=1, max_seconds=5)
    assert [policy.wait_seconds(attempt, None) for attempt in (1, 2, 3, 4, 5)] == [1, 2, 4, 5, 5]


def test_what_the_hub_asks_for_is_honoured_up_to_a_cap() -> None:
    assert Retry().wait_seconds(1, 42) == 42
    assert Retry(max_asked_seconds=300).wait_seconds(1, 86400) == 300


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"ratelimit": '"api";r=0;t=55'}, 56),
        ({"ratelimit": '"api";r=7;t=55'}, None),
        ({"ratelimit": '"api";r=7;t=55', "retry-after": "3"}, 4),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({}, None),
    ],
)
def test_asked_seconds(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_seconds(headers) == seconds


@pytest.mark.parametrize("status", sorted(retry.TRANSIENT_STATUS))
def test_own_requests_raise_transient_with_the_wait_that_was_asked_for(status: int) -> None:
    with pytest.raises(Transient, match=str(status)) as caught:
        answering(status, {"retry-after": "9"}).get("http://hub/api", headers=OURS)
    assert caught.value.wait_seconds == 10


@pytest.mark.parametrize("status", [200, 401, 403, 404, 409, 412])
def test_other_statuses_pass_through(status: int) -> None:
    assert answering(status).get("http://hub/api", headers=OURS).status_code == status


def test_a_cut_connection_is_transient_for_own_requests_only() -> None:
    def cut(request: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("server disconnected")

    session = Session(transport=httpx.MockTransport(cut))
    with pytest.raises(Transient, match="server disconnected"):
        session.get("http://hub/api", headers=OURS)
    with pytest.raises(httpx.RemoteProtocolError):
        session.get("http://hub/api", headers={"user-agent": "transformers/5"})


def test_own_requests_get_a_timeout_and_keep_a_given_one() -> None:
    seen: list[dict[str, float]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"])
        return httpx.Response(200)

    session = Session(transport=httpx.MockTransport(answer), timeout=None)
    session.get("http://hub/api", headers=OURS)
    session.get("http://hub/api", headers=OURS, timeout=7)
    session.get("http://hub/api")
    assert seen[0] == retry.TIMEOUT_SECONDS
    assert seen[1]["read"] == 7
    assert seen[2]["read"] is None


def test_the_wait_between_uploads_of_a_body_is_capped() -> None:
    session = answering(429, {"ratelimit": '"api";r=0;t=99999'})
    assert asked_seconds(session.put("http://storage/x").headers) == BODY_WAIT_CAP_SECONDS + 1
    assert asked_seconds(answering(429, {"retry-after": "5"}).put("http://storage/x").headers) == 6


def test_install_keeps_the_session_it_has_made() -> None:
    install()
    session = get_session()
    assert isinstance(session, Session)
    install()
    assert get_session() is session


def test_another_librarys_client_is_left_as_it_is(local_hub: LocalHub) -> None:
    install()
    local_hub.faults.inject("api/models/a/b", status=503)
    with pytest.raises(HfHubHTTPError):
        HfApi(endpoint=local_hub.url, token="hf_demo_bot").model_info("a/b")
