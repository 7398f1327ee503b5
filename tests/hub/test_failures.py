import errno
from pathlib import Path

import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from hubquant.artifact import file_sha256
from hubquant.errors import DiskFull, HubError, HubUnavailable, NotAuthorized
from hubquant.hub import failures
from hubquant.hub.client import Hub
from hubquant.hub.files import File
from hubquant.hub.retry import Transient


def answered(status: int, message: str = "") -> HfHubHTTPError:
    response = httpx.Response(status, headers={"retry-after": "4"}, request=httpx.Request("GET", "http://hub/api/models/a/b"))
    return HfHubHTTPError(f"{status} {message}", response=response, server_message=message)


def wrapped(inner: Exception) -> RuntimeError:
    error = RuntimeError("Error while uploading 'x' to the Hub.")
    error.__cause__ = inner
    return error


@pytest.mark.parametrize(
    ("failure", "wait_seconds"),
    [
        (Transient("HTTP 500", 3), 3),
        (wrapped(Transient("cut")), None),
        (wrapped(answered(503)), 5),
        (answered(429), 5),
        (httpx.ReadTimeout("slow"), None),
        (OSError("Consistency check failed: file should be of size 5"), None),
        (RuntimeError("Data processing error: CAS service error"), None),
        (ConnectionError("HTTP status client error (429 Too Many Requests)"), None),
    ],
)
def test_what_may_pass(failure: Exception, wait_seconds: float | None) -> None:
    found = failures.passing(failure)
    assert found is not None and found.wait_seconds == wait_seconds


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (answered(401), NotAuthorized, "does not know this token"),
        (answered(403, "no right"), NotAuthorized, "no right"),
        (answered(402, "Payment required"), HubError, "quota"),
        (answered(403, "Private repository storage limit reached"), HubError, "quota"),
        (answered(409, "exists"), HubError, "HTTP 409.*exists"),
        (answered(412), failures.HeadMoved, "somebody else committed"),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), DiskFull, "the disk filled up"),
        (RuntimeError("IO Error: No space left on device (os error 28)"), DiskFull, "the disk filled up"),
        (OfflineModeIsEnabled("offline"), HubUnavailable, "HF_HUB_OFFLINE"),
        (ValueError("not JSON"), HubError, "cannot be used.*not JSON"),
    ],
)
def test_what_does_not_pass(failure: Exception, kind: type[Exception], words: str) -> None:
    assert failures.passing(failure) is None
    error = failures.error(failure, "doing it", "a/b", "http://hub")
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error


def test_a_local_file_that_cannot_be_read_is_not_the_hubs_failure(hub: Hub) -> None:
    assert failures.error(PermissionError(errno.EACCES, "Permission denied"), "doing it", "a/b", "http://hub") is None
    with pytest.raises(PermissionError):
        hub.call("doing it", "a/b", _denied)


def _denied() -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_hub_without_xet(hub: Hub, tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.ensure_repo("demo-bot/x")
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(bytes(2000))
    with pytest.raises(HubError, match="set HF_HUB_DISABLE_XET=1"):
        hub.commit("demo-bot/x", [File(weights.name, weights, file_sha256(weights))], "message", hub.head("demo-bot/x"))
    assert slept == []
