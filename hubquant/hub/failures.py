"""What a failed call to the Hub means: one that may pass (`passing`), or one of our errors, in one sentence (`error`)."""

import errno
import re

from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from hubquant.errors import DiskFull, GatedModel, HubError, HubquantError, HubUnavailable, NotAuthorized, RepoGone, UsageError
from hubquant.hub.retry import TRANSIENT_ERRORS, TRANSIENT_STATUS, Transient, asked_seconds

# What the client raises: its own errors, httpx's, OSError (also for a body cut short), RuntimeError (around a failed upload,
# and from hf_xet), ValueError (an answer that is not what it should be).
RAISED = (Transient, httpx.HTTPError, LocalTokenNotFoundError, OSError, RuntimeError, ValueError)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
QUOTA_WORDS = ("quota", "storage", "limit", "payment")
XET_REFUSED = re.compile(r"HTTP status client error \((?!408|429)4\d\d")


class HeadMoved(HubError):
    """Somebody else committed in between; read the repo again and decide anew."""


def root(failure: BaseException) -> BaseException:
    """The failure itself, or the request's failure that it wraps."""
    inner: BaseException | None = failure
    while inner is not None:
        if isinstance(inner, Transient | httpx.HTTPError) or (isinstance(inner, OSError) and inner.errno is not None):
            return inner
        inner = inner.__cause__
    return failure


def passing(failure: BaseException) -> Transient | None:
    """The failure as one worth repeating, or None."""
    cause = root(failure)
    if isinstance(cause, Transient):
        return cause
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        return Transient(f"HTTP {status}", asked_seconds(cause.response.headers)) if status in TRANSIENT_STATUS else None
    if isinstance(cause, TRANSIENT_ERRORS) or _is_xet(cause) or "Consistency check failed" in str(cause):
        return Transient(f"{type(cause).__name__}: {cause}")
    return None


def _is_xet(cause: BaseException) -> bool:
    """hf_xet reports network trouble as RuntimeError or as a builtin ConnectionError, with the status in words."""
    if isinstance(cause, OfflineModeIsEnabled) or _is_disk_full(cause) or XET_REFUSED.search(str(cause)):
        return False
    return isinstance(cause, RuntimeError | ConnectionError | TimeoutError)


def _is_disk_full(cause: BaseException) -> bool:
    full = isinstance(cause, OSError) and cause.errno in DISK_FULL
    return full or "No space left on device" in str(cause)


def error(failure: BaseException, what: str, repo_id: str, endpoint: str) -> HubquantError | None:
    """Our error for a failure that no repetition mends; None for one that is not the Hub's (a local file that cannot be read)."""
    cause = root(failure)
    if _is_disk_full(cause):
        return DiskFull(f"the disk filled up: {what}; free some space or use another folder, then run it again")
    if isinstance(cause, GatedRepoError):
        return GatedModel(
            f"{repo_id} is gated and this token has no access; accept its terms at {endpoint}/{repo_id} with the token's account"
        )
    if isinstance(cause, RevisionNotFoundError):
        return RepoGone(f"{repo_id} has no such revision (any more): {what}; name an existing one")
    if isinstance(cause, RemoteEntryNotFoundError):
        return RepoGone(f"a file of {repo_id} is not there (any more): {what}")
    if isinstance(cause, RepositoryNotFoundError):
        return RepoGone(f"{repo_id} is not on {endpoint} (any more), or it is private and this token cannot see it: {what}")
    if isinstance(cause, DisabledRepoError):
        return RepoGone(f"{repo_id} was disabled by the Hub: {what}")
    if isinstance(cause, HfHubHTTPError):
        return _status_error(cause, what, repo_id)
    if isinstance(cause, LocalTokenNotFoundError):
        return NotAuthorized(f"no token for {endpoint}: {what}; set HF_TOKEN or run `hf auth login`")
    if isinstance(cause, OfflineModeIsEnabled):
        return HubUnavailable(f"HF_HUB_OFFLINE is set, so {endpoint} cannot be asked: {what}; unset it")
    if isinstance(cause, HFValidationError):
        return UsageError(f"{repo_id!r} is not the id of a repo: {_line(cause)}; write it as ORGANISATION/NAME")
    if XET_REFUSED.search(str(cause)) and "xet-" in str(cause):
        return HubError(f"{endpoint} keeps no large files in Xet storage: {what}; set HF_HUB_DISABLE_XET=1 before starting")
    if isinstance(cause, OSError) and cause.errno is not None:
        return None
    return HubError(f"{endpoint} gave an answer that cannot be used: {what}: {_line(cause)}")


def _status_error(cause: HfHubHTTPError, what: str, repo_id: str) -> HubError:
    status = cause.response.status_code
    message = cause.server_message or _line(cause)
    if status == 402 or (status in (403, 413) and any(word in message.lower() for word in QUOTA_WORDS)):
        return HubError(f"the account's quota does not allow it: {what}: {message}; free some space or raise the quota")
    if status == 401:
        return NotAuthorized(f"the Hub does not know this token: {what}; set a valid HF_TOKEN or run `hf auth login`")
    if status == 403:
        return NotAuthorized(f"this token may not do this to {repo_id}: {what}: {message}; use one with write access to it")
    if status == 412:
        return HeadMoved(f"somebody else committed to {repo_id} in between: {what}")
    return HubError(f"the Hub refused (HTTP {status}): {what}: {message}")


def _line(cause: BaseException) -> str:
    return " ".join(str(cause).split())[:300] or type(cause).__name__
