"""Everything one local Hub is made of; the routes reach it through `app.state.hub`."""

from collections.abc import Sequence
from pathlib import Path

from hubquant.hub.local.accounts import Accounts, User
from hubquant.hub.local.clock import Clock
from hubquant.hub.local.collections import Collections
from hubquant.hub.local.commits import Commits
from hubquant.hub.local.discussions import Discussions
from hubquant.hub.local.faults import Faults, RequestLog
from hubquant.hub.local.info import Infos
from hubquant.hub.local.lfs import Uploads
from hubquant.hub.local.limits import RateLimit
from hubquant.hub.local.repos import Repo, Repos
from hubquant.hub.local.storage import Store
from hubquant.hub.local.webhooks import Event, Webhooks


class HubState:
    """Opens the folder; `url` is known once the server listens."""

    def __init__(self, root: Path, users: Sequence[User], page_size: int = 100) -> None:
        self.accounts = Accounts(users)
        self.store = Store(root)
        self.url = ""
        self.page_size = page_size
        self.clock = Clock()
        self.repos = Repos(self.store)
        self.commits = Commits(self.store, self.repos)
        self.discussions = Discussions(self.store, self.repos, self.commits, self.clock)
        self.collections = Collections(self.store, self.clock)
        self.webhooks = Webhooks(self.store, self.accounts)
        self.infos = Infos(self.store, self.repos, self.commits)
        self.uploads = Uploads(self.store)
        self.faults = Faults()
        self.requests = RequestLog()
        self.rate_limit = RateLimit()

    def notify(self, repo: Repo, event: Event) -> None:
        """Tell the webhooks that watch the repo."""
        self.webhooks.notify(self.url, repo, list(self.infos.derived(repo).tags), event)

    def close(self) -> None:
        self.webhooks.queue.close()
        self.store.close()
