"""Webhooks: who wants to hear of what, and the payloads they are sent (version 3, as `huggingface_hub.WebhookPayload`)."""

import hashlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubquant.hub.local.accounts import Accounts, Caller, User
from hubquant.hub.local.answers import Refusal, bad_request, not_found
from hubquant.hub.local.commits import MAIN
from hubquant.hub.local.delivery import Delivery, DeliveryQueue
from hubquant.hub.local.repos import Repo
from hubquant.hub.local.storage import Store

Record = dict[str, Any]
DOMAINS = ("repo", "discussion")
WATCHABLE = ("user", "org", "model", "dataset", "space", "bucket")


@dataclass(frozen=True)
class Event:
    """What happened to a repo. `details` joins the payload: updatedRefs, discussion, comment, movedTo."""

    action: str  # create | delete | update | move
    scope: str  # repo | repo.content | repo.config | discussion | discussion.comment
    details: Record


def owner_id(name: str) -> str:
    """24 hex digits that always stand for this account."""
    return hashlib.sha1(name.lower().encode(), usedforsecurity=False).hexdigest()[:24]


class Webhooks:
    """Records in root/webhooks/, deliveries in order from a thread of their own."""

    def __init__(self, store: Store, accounts: Accounts) -> None:
        self._store = store
        self._accounts = accounts
        self._folder = store.root / "webhooks"
        self.queue = DeliveryQueue()

    def _path(self, id_: str) -> Path:
        return self._folder / f"{id_}.json"

    def of(self, user: User) -> list[Record]:
        return [record for record in self._store.read_records(self._folder) if record["owner"] == user.name]

    def get(self, user: User, id_: str) -> Record:
        found = next((record for record in self.of(user) if record["id"] == id_), None)
        if found is None:
            raise not_found(f"Webhook {id_} not found")
        return found

    def save(self, user: User, body: Record, record: Record | None = None) -> Record:
        """Create or change one. Raises Refusal 400 for a body the Hub would not take."""
        url = body.get("url", record["url"] if record else None)
        if "jobSourceId" in body:
            raise Refusal(501, "This Hub runs no jobs: give the webhook a url")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise bad_request(f'"url" must be an http address, not {url!r}')
        watched = body.get("watched") or (record["watched"] if record else [])
        for item in watched:
            if not isinstance(item, dict) or item.get("type") not in WATCHABLE or not isinstance(item.get("name"), str):
                raise bad_request(f'"watched" takes {{type, name}} with a type of {", ".join(WATCHABLE)}, not {item!r}')
        domains = body.get("domains") or (record["domains"] if record else list(DOMAINS))
        if not set(domains) <= set(DOMAINS):
            raise bad_request(f'"domains" must be among {", ".join(DOMAINS)}, not {domains!r}')
        kept = record or {"id": secrets.token_hex(12), "owner": user.name, "job": None, "disabled": False, "secret": None}
        saved = {**kept, "url": url, "watched": watched, "domains": domains, "secret": body.get("secret", kept["secret"])}
        self._store.write_json(self._path(saved["id"]), saved)
        return saved

    def set_disabled(self, user: User, id_: str, disabled: bool) -> Record:
        record = {**self.get(user, id_), "disabled": disabled}
        self._store.write_json(self._path(id_), record)
        return record

    def delete(self, user: User, id_: str) -> None:
        self.get(user, id_)
        self._path(id_).unlink(missing_ok=True)

    def notify(self, hub_url: str, repo: Repo, tags: list[str], event: Event) -> None:
        """Queue the event for every webhook that watches the repo and whose owner may see it. Kernels have no payload."""
        if repo.type == "kernel":
            return
        for record in self._store.read_records(self._folder):
            owner = self._accounts.find(record["owner"])
            if record["disabled"] or owner is None or not repo.readable_by(Caller(owner)):
                continue
            if event.scope.partition(".")[0] in record["domains"] and any(_watches(item, repo) for item in record["watched"]):
                payload = _payload(hub_url, repo, tags, event, record["id"])
                self.queue.put(Delivery(record["id"], record["url"], record["secret"], json.dumps(payload)))


def _watches(item: Record, repo: Repo) -> bool:
    name = item["name"].lower()
    if item["type"] in ("user", "org"):
        return bool(name == repo.namespace.lower())
    return bool(item["type"] == repo.type and name == repo.id.lower())


def _payload(hub_url: str, repo: Repo, tags: list[str], event: Event, webhook_id: str) -> Record:
    about: Record = {
        "type": repo.type,
        "name": repo.id,
        "id": repo.key,
        "private": repo.private,
        "headSha": repo.refs.get(MAIN),
        "tags": tags,
        "owner": {"id": owner_id(repo.namespace)},
        "url": {"web": f"{hub_url}/{repo.url_path}", "api": f"{hub_url}/{repo.api_path}"},
    }
    event_record = {"action": event.action, "scope": event.scope}
    return {"event": event_record, "repo": about, **event.details, "webhook": {"id": webhook_id, "version": 3}}


def updated_ref(ref: str, old: str | None, new: str | None) -> Record:
    return {"updatedRefs": [{"ref": ref, "oldSha": old, "newSha": new}]}


def discussion_details(hub_url: str, repo: Repo, record: Record, comment: Record | None = None) -> Record:
    """`record` and `comment` as discussions.py keeps them."""
    web = f"{hub_url}/{repo.url_path}/discussions/{record['num']}"
    about: Record = {
        "id": record["id"],
        "num": record["num"],
        "title": record["title"],
        "status": record["status"],
        "isPullRequest": record["isPullRequest"],
        "author": {"id": owner_id(record["author"])},
        "url": {"web": web, "api": f"{hub_url}/{repo.api_path}/discussions/{record['num']}"},
    }
    if record["isPullRequest"]:
        about["changes"] = {"base": record["base"], "mergeCommitId": record["mergeCommitId"]}
    if comment is None:
        return {"discussion": about}
    said: Record = {
        "id": comment["id"],
        "author": {"id": owner_id(comment["author"]["name"])},
        "hidden": comment["data"]["hidden"],
        "content": comment["data"]["latest"]["raw"],
        "url": {"web": f"{web}#{comment['id']}"},
    }
    return {"discussion": about, "comment": said}
