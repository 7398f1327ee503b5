"""The error answers of the Hub: a status, a sentence, and the X-Error-Code that the client turns into an exception."""

from hubquant.hub.local.accounts import Caller


class Refusal(Exception):
    """A request the Hub refuses. `code` becomes X-Error-Code; `body` replaces the usual {"error": message}."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        body: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}
        self.body = body if body is not None else {"error": message}


def bad_request(message: str) -> Refusal:
    return Refusal(400, message)


def not_found(message: str) -> Refusal:
    return Refusal(404, message)


def invalid_token() -> Refusal:
    return Refusal(401, "Invalid credentials in Authorization header")


def sign_in_first() -> Refusal:
    return Refusal(401, "Invalid username or password.")


def forbidden(message: str) -> Refusal:
    return Refusal(403, message)


def repo_not_found(caller: Caller) -> Refusal:
    """A missing repo and a private one look the same from outside: 401 for the anonymous, 404 for everybody else."""
    if caller.anonymous:
        return Refusal(401, "Invalid username or password.", "RepoNotFound")
    return Refusal(404, "Repository not found", "RepoNotFound")


def revision_not_found(revision: str) -> Refusal:
    return Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(message: str, commit: str | None = None) -> Refusal:
    return Refusal(404, message, "EntryNotFound", {"X-Repo-Commit": commit} if commit else None)


def gated(caller: Caller, type_: str, repo_id: str) -> Refusal:
    restricted = f"Access to {type_} {repo_id} is restricted"
    if caller.anonymous:
        return Refusal(401, f"{restricted}. You must be authenticated and have access to it. Please log in.", "GatedRepo")
    return Refusal(403, f"{restricted} and you are not in the authorized list. Visit its page to ask for access.", "GatedRepo")


def stale_parent() -> Refusal:
    return Refusal(412, "The branch was updated since you opened this page. Please refresh and try again.")
