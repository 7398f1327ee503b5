"""The Hub as hubquant uses it: the unmodified `huggingface_hub` client, every call repeated by one policy, every failure one of our
errors with one sentence."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, constants
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from hubquant import __version__
from hubquant.errors import HubError, HubUnavailable, NotAuthorized
from hubquant.hub import failures
from hubquant.hub.failures import HeadMoved
from hubquant.hub.files import File
from hubquant.hub.retry import LIBRARY, Retry, Transient, install

T = TypeVar("T")
WRITING_ROLES = ("admin", "write", "contributor")  # of a member in an organisation
log = logging.getLogger(__name__)


class Hub:
    """One Hub and one token. `token`: None takes the client's (HF_TOKEN, `hf auth login`), False means none.

    Every method raises: HubUnavailable after the last attempt, NotAuthorized, GatedModel, RepoGone, HubError.
    """

    def __init__(
        self,
        endpoint: str = "",
        token: str | bool | None = None,
        retry: Retry | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        install()
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.token = token
        self.retry = retry or Retry()
        self.api = HfApi(endpoint=self.endpoint, token=token, library_name=LIBRARY, library_version=__version__)
        self._sleep = sleep

    def call(self, what: str, repo_id: str, do: Callable[[], T]) -> T:
        """`do()`, repeated while its failure may pass. `what` says in words what is being done, for messages."""
        for attempt in range(1, self.retry.attempts + 1):
            try:
                return do()
            except failures.RAISED as failure:
                passing = self._passing(failure, what, repo_id)
            self._wait(passing, attempt, what)
        raise AssertionError("unreachable: _wait raises after the last attempt")

    def _passing(self, failure: BaseException, what: str, repo_id: str) -> Transient:
        """The failure if it may pass; raises our error otherwise."""
        passing = failures.passing(failure)
        if passing is not None:
            return passing
        error = failures.error(failure, what, repo_id, self.endpoint)
        if error is None:
            raise failure
        raise error from failure

    def _wait(self, failure: Transient, attempt: int, what: str) -> None:
        if attempt >= self.retry.attempts:
            raise HubUnavailable(
                f"{self.endpoint} failed {attempt} times, last with {failure}: {what}; try again later"
            ) from failure
        seconds = self.retry.wait_seconds(attempt, failure.wait_seconds)
        log.warning("%s: %s; attempt %d of %d in %.1f s", what, failure, attempt + 1, self.retry.attempts, seconds)
        self._sleep(seconds)

    # -- who

    def whoami(self) -> dict[str, Any]:
        if self.token is False:
            raise NotAuthorized(f"no token for {self.endpoint}; set HF_TOKEN or run `hf auth login`")
        return self.call("asking whose token this is", "the account", self.api.whoami)

    def check_can_write(self, namespace: str) -> None:
        """Raises NotAuthorized unless the token may create and write repos in `namespace`. Reads no email: fine-grained tokens
        have none."""
        me = self.whoami()
        token = me.get("auth", {}).get("accessToken", {})
        label = f"token {token.get('displayName', '')!r} of {me['name']}"
        if token.get("role") == "read":
            raise NotAuthorized(
                f"the {label} can only read; make one with the role write, or fine-grained with write to {namespace}"
            )
        roles = {org["name"]: org.get("roleInOrg", "write") for org in me.get("orgs", [])}
        if namespace != me["name"] and roles.get(namespace) not in WRITING_ROLES:
            can = ", ".join([me["name"], *(name for name, role in roles.items() if role in WRITING_ROLES)])
            raise NotAuthorized(f"the {label} cannot write to {namespace!r}; it can write to: {can}")
        scopes = token.get("fineGrained", {}).get("scoped")
        if token.get("role") == "fineGrained" and scopes is not None:
            granted = [scope for scope in scopes if scope.get("entity", {}).get("name") == namespace]
            if not any("repo.write" in scope.get("permissions", ()) for scope in granted):
                raise NotAuthorized(
                    f"the {label} is fine-grained without write access to repos of {namespace!r}; grant it repo.write"
                )

    # -- what is there

    def list_models(self, **query: Any) -> Iterator[ModelInfo]:
        """`HfApi.list_models` (filter, author, search, sort, limit, expand, full, cardData), lazily, each model once, also when
        the listing has to be started again in between."""
        seen: set[str] = set()
        for attempt in range(1, self.retry.attempts + 1):
            try:
                for info in self.api.list_models(**query):
                    if info.id not in seen:
                        seen.add(info.id)
                        yield info
                return
            except failures.RAISED as failure:
                passing = self._passing(failure, "listing models", "the listing")
            self._wait(passing, attempt, "listing models")

    def model_info(self, repo_id: str, revision: str | None = None, files_metadata: bool = False) -> ModelInfo:
        return self.call(
            f"reading about {repo_id}",
            repo_id,
            lambda: self.api.model_info(repo_id, revision=revision, files_metadata=files_metadata),
        )

    def repo_exists(self, repo_id: str) -> bool:
        """Whether it is there and visible to this token."""
        return self.call(f"looking for {repo_id}", repo_id, lambda: self.api.repo_exists(repo_id))

    def check_access(self, repo_id: str) -> None:
        """Raises GatedModel or RepoGone if the files of the repo cannot be read with this token."""
        self.call(f"asking for access to {repo_id}", repo_id, lambda: self.api.auth_check(repo_id))

    def head(self, repo_id: str) -> str:
        """The commit of branch main, 40 hex digits."""
        sha = self.model_info(repo_id).sha
        if not sha:
            raise HubError(f"{repo_id} has no commit; it was not created through the Hub's interface")
        return sha

    def tree(self, repo_id: str, revision: str) -> dict[str, RepoFile]:
        """Every file at a revision, by path."""

        def read() -> dict[str, RepoFile]:
            entries = self.api.list_repo_tree(repo_id, recursive=True, revision=revision)
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return self.call(f"listing the files of {repo_id}", repo_id, read)

    def read_text(self, repo_id: str, path: str, revision: str) -> str | None:
        """A small text file, or None if it is not there."""

        def read() -> str | None:
            with tempfile.TemporaryDirectory(prefix="hubquant-") as folder:
                try:
                    local = self.api.hf_hub_download(repo_id, path, revision=revision, local_dir=folder)
                except RemoteEntryNotFoundError:
                    return None
                return Path(local).read_text(encoding="utf-8", errors="replace")

        return self.call(f"reading {path} of {repo_id}", repo_id, read)

    def validate_card(self, text: str) -> None:
        """Raises HubError with the Hub's reasons if it would refuse this README.md."""

        def post() -> None:
            headers = build_hf_headers(token=self.token, library_name=LIBRARY, library_version=__version__)
            body = {"content": text, "repoType": "model"}
            response = get_session().post(f"{self.endpoint}/api/validate-yaml", json=body, headers=headers)
            if response.status_code == 400:
                reasons = "; ".join(str(error.get("message")) for error in response.json().get("errors", []))
                raise HubError(f"the Hub refuses the card's front matter: {reasons}")
            hf_raise_for_status(response)

        self.call("checking a model card", "the card", post)

    # -- changing it

    def ensure_repo(self, repo_id: str, private: bool = True) -> bool:
        """Create the repo unless it is there; whether it was created. Asks first: `create_repo` uses up a quota of its own even
        when the repo exists."""
        if self.repo_exists(repo_id):
            return False

        def create() -> None:
            try:
                self.api.create_repo(repo_id, private=private)
            except HfHubHTTPError as error:
                if error.response.status_code != 409:  # 409: it exists, from an attempt whose answer was lost
                    raise

        self.call(f"creating {repo_id}", repo_id, create)
        return True

    def commit(self, repo_id: str, files: Sequence[File], message: str, parent: str, delete: Iterable[str] = ()) -> str:
        """One commit on top of `parent`, all or nothing; returns its id. Safe to repeat: after a lost answer the head is read
        again, and if it holds exactly these files, that is our commit.

        Raises HeadMoved if the head is neither `parent` nor holds these files.
        """
        gone = tuple(delete)
        what = f"committing {len(files)} files to {repo_id}"

        def attempt_commit() -> str:
            additions = [CommitOperationAdd(file.path, file.source) for file in files]
            deletions = [CommitOperationDelete(path) for path in gone]
            info = self.api.create_commit(
                repo_id, [*additions, *deletions], commit_message=message, parent_commit=parent
            )  # operations are mutated by the client, so each attempt has its own
            return str(info.oid)

        for attempt in range(1, self.retry.attempts + 1):
            try:
                return attempt_commit()
            except failures.RAISED as failure:
                try:
                    passing = self._passing(failure, what, repo_id)
                except HeadMoved as error:
                    passing = Transient(str(error))
            head = self.head(repo_id)
            if head != parent:
                if self.holds(repo_id, head, files, gone):
                    return head
                raise HeadMoved(f"somebody else committed to {repo_id} in between; nothing was overwritten; run it again")
            self._wait(passing, attempt, what)
        raise AssertionError("unreachable: _wait raises after the last attempt")

    def holds(self, repo_id: str, revision: str, files: Sequence[File], gone: Iterable[str] = ()) -> bool:
        """Whether the revision has every one of `files` with its content, and none of `gone`."""
        tree = self.tree(repo_id, revision)
        return all(file.is_at(tree.get(file.path)) for file in files) and not any(path in tree for path in gone)

    def set_private(self, repo_id: str, private: bool) -> None:
        what = f"making {repo_id} {'private' if private else 'public'}"
        self.call(what, repo_id, lambda: self.api.update_repo_settings(repo_id, private=private))

    def add_to_collection(self, repo_id: str, title: str, namespace: str) -> None:
        """Add the repo to the namespace's collection of that title, which is created if need be."""

        def add() -> None:
            found = (c.slug for c in self.api.list_collections(owner=namespace) if c.title == title)
            slug = next(found, None) or self.api.create_collection(title, namespace=namespace, exists_ok=True).slug
            self.api.add_collection_item(slug, repo_id, "model", exists_ok=True)

        self.call(f"adding {repo_id} to the collection {title!r}", repo_id, add)

    def delete_repo(self, repo_id: str) -> None:
        """Harmless if it is not there."""
        self.call(f"deleting {repo_id}", repo_id, lambda: self.api.delete_repo(repo_id, missing_ok=True))
