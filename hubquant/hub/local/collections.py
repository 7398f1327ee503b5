"""Collections of repos: one JSON record each."""

import re
import secrets
import threading
import unicodedata
from pathlib import Path
from typing import Any

from hubquant.hub.local.accounts import Caller
from hubquant.hub.local.answers import Refusal, bad_request, forbidden, not_found, sign_in_first
from hubquant.hub.local.clock import Clock
from hubquant.hub.local.storage import Store

Record = dict[str, Any]
ITEM_TYPES = ("model", "dataset", "space", "kernel", "paper", "collection", "bucket")
CHANGEABLE = {"title": str, "description": str, "position": int, "private": bool, "theme": str}


def slug_of(namespace: str, title: str, key: str) -> str:
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return f"{namespace}/{re.sub('[^a-z0-9]+', '-', plain).strip('-')[:60]}-{key}"


class Collections:
    """`key` in a record: the 24 hex digits that end its slug; the words before them may change with the title."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._folder = store.root / "collections"
        self._lock = threading.Lock()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _save(self, record: Record) -> Record:
        record["lastUpdated"] = self._clock.now()
        self._store.write_json(self._path(record["key"]), record)
        return record

    def all(self, who: Caller) -> list[Record]:
        """Those the caller may see, last updated first."""
        records = self._store.read_records(self._folder)
        visible = [record for record in records if not record["private"] or who.member_of(record["owner"])]
        return sorted(visible, key=lambda record: str(record["lastUpdated"]), reverse=True)

    def get(self, namespace: str, slug: str, who: Caller) -> Record:
        key = slug.rpartition("-")[2]
        for record in self.all(who):
            if record["key"] == key and record["owner"].lower() == namespace.lower():
                return record
        raise not_found(f"Collection {namespace}/{slug} not found")

    def _writable(self, namespace: str, slug: str, who: Caller) -> Record:
        record = self.get(namespace, slug, who)
        if who.anonymous:
            raise sign_in_first()
        if not who.can_write or not who.member_of(record["owner"]):
            raise forbidden(f"You don't have the rights to change the collections of {record['owner']}")
        return record

    def create(self, namespace: str, title: str, description: str | None, private: bool) -> Record:
        """Raises Refusal 409 with the slug if this owner has one of that title."""
        with self._lock:
            for record in self._store.read_records(self._folder):
                if record["owner"] == namespace and record["title"] == title:
                    raise Refusal(409, "A collection with this title exists", body={"error": "exists", "slug": record["slug"]})
            key = secrets.token_hex(12)
            return self._save(
                {
                    "key": key,
                    "slug": slug_of(namespace, title, key),
                    "title": title,
                    "description": description,
                    "owner": namespace,
                    "items": [],
                    "position": 0,
                    "private": private,
                    "theme": "blue",
                    "upvotes": 0,
                }
            )

    def update(self, namespace: str, slug: str, who: Caller, changes: Record) -> Record:
        with self._lock:
            record = self._writable(namespace, slug, who)
            for name, value in changes.items():
                if name not in CHANGEABLE or not isinstance(value, CHANGEABLE[name]):
                    raise bad_request(f'"{name}" of a collection cannot become {value!r}')
                record[name] = value
            record["slug"] = slug_of(record["owner"], record["title"], record["key"])
            return self._save(record)

    def delete(self, namespace: str, slug: str, who: Caller) -> None:
        with self._lock:
            self._path(self._writable(namespace, slug, who)["key"]).unlink(missing_ok=True)

    def add_item(self, namespace: str, slug: str, who: Caller, type_: str, item_id: str, note: str | None) -> Record:
        """Raises Refusal 409 if it is in the collection already."""
        if type_ not in ITEM_TYPES:
            raise bad_request(f'"type" must be one of {", ".join(ITEM_TYPES)}, not {type_!r}')
        with self._lock:
            record = self._writable(namespace, slug, who)
            if any(item["id"] == item_id and item["type"] == type_ for item in record["items"]):
                raise Refusal(409, f"{type_} {item_id} is in this collection already")
            item = {"_id": secrets.token_hex(12), "id": item_id, "type": type_, "position": len(record["items"])}
            record["items"].append({**item, **({"note": {"text": note}} if note else {})})
            return self._save(record)

    def change_item(self, namespace: str, slug: str, who: Caller, key: str, position: int | None, note: str | None) -> Record:
        with self._lock:
            record, item = self._item(namespace, slug, who, key)
            if note is not None:
                item["note"] = {"text": note}
            if position is not None:
                record["items"].remove(item)
                record["items"].insert(position, item)
            return self._save(_renumbered(record))

    def delete_item(self, namespace: str, slug: str, who: Caller, key: str) -> Record:
        with self._lock:
            record, item = self._item(namespace, slug, who, key)
            record["items"].remove(item)
            return self._save(_renumbered(record))

    def _item(self, namespace: str, slug: str, who: Caller, key: str) -> tuple[Record, Record]:
        record = self._writable(namespace, slug, who)
        item: Record | None = next((item for item in record["items"] if item["_id"] == key), None)
        if item is None:
            raise not_found(f"Item {key} is not in this collection")
        return record, item


def _renumbered(record: Record) -> Record:
    for position, item in enumerate(record["items"]):
        item["position"] = position
    return record
