"""Who may do what: users with tokens, roles and organisations."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from hubquant.errors import UsageError

NAMESPACE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,40}[A-Za-z0-9])?")
RESERVED = frozenset({"api", "datasets", "spaces", "kernels", "models", "collections", "settings", "organizations"})


@dataclass(frozen=True)
class User:
    """An account with one token. `role` is the token's: a read token changes nothing. `orgs`: more namespaces it may write to."""

    name: str
    token: str
    role: Literal["read", "write"] = "write"
    orgs: tuple[str, ...] = ()

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.orgs)


DEFAULT_USERS: tuple[User, ...] = (
    User("demo-bot", "hf_demo_bot"),
    User("demo-org", "hf_demo_org"),
    User("reader", "hf_reader", role="read"),
)


@dataclass(frozen=True)
class Caller:
    """The sender of a request. Anonymous without a user."""

    user: User | None = None

    @property
    def anonymous(self) -> bool:
        return self.user is None

    @property
    def name(self) -> str | None:
        return self.user.name if self.user else None

    @property
    def can_write(self) -> bool:
        return self.user is not None and self.user.role == "write"

    def member_of(self, namespace: str) -> bool:
        return self.user is not None and namespace.lower() in {owned.lower() for owned in self.user.namespaces}


class Accounts:
    """Users by token. Raises UsageError for names or tokens that clash or could not appear in a URL."""

    def __init__(self, users: Sequence[User]) -> None:
        self.users = tuple(users)
        for user in self.users:
            for namespace in user.namespaces:
                if not NAMESPACE.fullmatch(namespace) or namespace.lower() in RESERVED:
                    raise UsageError(f"{namespace!r} cannot be a namespace of the local Hub: use letters, digits and inner dashes")
        self._by_token = {user.token: user for user in self.users}
        if len(self._by_token) != len(self.users) or len({user.name.lower() for user in self.users}) != len(self.users):
            raise UsageError("two users of the local Hub have the same name or the same token: make them different")

    def caller(self, token: str) -> Caller | None:
        """None for a token that nobody has."""
        user = self._by_token.get(token)
        return Caller(user) if user else None

    def find(self, name: str) -> User | None:
        return next((user for user in self.users if user.name.lower() == name.lower()), None)

    def namespace(self, name: str) -> str | None:
        """The namespace as its owner spells it, or None."""
        names = (owned for user in self.users for owned in user.namespaces)
        return next((owned for owned in names if owned.lower() == name.lower()), None)


def read_users(path: Path) -> tuple[User, ...]:
    """users.json: a list of {"name", "token", "role": "read"|"write", "orgs": […]}.

    Raises UsageError naming the file and the field.
    """
    try:
        return TypeAdapter(tuple[User, ...]).validate_python(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {where}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the users of the local Hub from {path}: {error}") from None
