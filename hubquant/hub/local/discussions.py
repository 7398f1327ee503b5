"""Discussions and pull requests: one JSON record each, beside the commits of their repo."""

import json
import secrets
from pathlib import Path
from typing import Any

from hubquant.hub.local.answers import bad_request, forbidden, not_found
from hubquant.hub.local.clock import Clock
from hubquant.hub.local.commits import MAIN, Commit, CommitDraft, Commits, Entry, Operation, Put, Remove
from hubquant.hub.local.repos import Repo, Repos
from hubquant.hub.local.storage import Store

Record = dict[str, Any]


def pr_ref(num: int) -> str:
    return f"refs/pr/{num}"


class Discussions:
    """Callers check rights; this keeps records consistent. Every change happens under the repo's lock."""

    def __init__(self, store: Store, repos: Repos, commits: Commits, clock: Clock) -> None:
        self._store = store
        self._repos = repos
        self._commits = commits
        self._clock = clock

    def _path(self, repo: Repo, num: int) -> Path:
        return self._repos.folder(repo) / "discussions" / f"{num:06d}.json"

    def _save(self, repo: Repo, record: Record) -> None:
        self._store.write_json(self._path(repo, record["num"]), record)

    def all(self, repo: Repo) -> list[Record]:
        """Newest first. A pull request exists once its ref does."""
        records = self._store.read_records(self._repos.folder(repo) / "discussions")
        return [record for record in records if not record["isPullRequest"] or pr_ref(record["num"]) in repo.refs][::-1]

    def get(self, repo: Repo, num: int) -> Record:
        try:
            record: Record = json.loads(self._path(repo, num).read_bytes())
        except FileNotFoundError:
            raise not_found(f"Discussion {num} not found") from None
        if record["isPullRequest"] and pr_ref(num) not in repo.refs:
            raise not_found(f"Discussion {num} not found")
        return record

    def _event(self, kind: str, author: str, data: Record) -> Record:
        return {
            "id": secrets.token_hex(12),
            "type": kind,
            "createdAt": self._clock.now(),
            "author": {"name": author, "type": "user"},
            "data": data,
        }

    def _comment(self, author: str, text: str) -> Record:
        latest = {"raw": text, "html": "", "updatedAt": self._clock.now(), "author": {"name": author, "type": "user"}}
        return self._event("comment", author, {"edited": False, "hidden": False, "latest": latest, "history": []})

    def open(self, repo: Repo, author: str, title: str, text: str) -> Record:
        with repo.changing():
            record = self._new(repo, author, title, text, status="open", base=None)
            self._save(repo, record)
            return record

    def open_draft_pr(self, repo: Repo, author: str, title: str, text: str) -> Record:
        """A pull request without commits yet, its ref at the head of main."""
        with repo.changing():
            record = self._new(repo, author, title, text, status="draft", base=MAIN)
            self._save(repo, record)
            self._repos.set_refs(repo, {pr_ref(record["num"]): repo.refs[MAIN]})
            return record

    def open_pr_with(self, repo: Repo, base: str, parent: Commit, draft: CommitDraft) -> tuple[Record, Commit]:
        """A pull request against the ref `base` that starts with one commit on `parent`."""
        with repo.changing():
            commit = draft.onto(parent)
            self._commits.write(self._repos.folder(repo), commit)
            record = self._new(repo, draft.author, draft.title, draft.message, status="open", base=base)
            record["events"].append(self._event("commit", draft.author, {"subject": draft.title, "oid": commit.oid}))
            self._save(repo, record)
            self._repos.set_refs(repo, {pr_ref(record["num"]): commit.oid})
            return record, commit

    def _new(self, repo: Repo, author: str, title: str, text: str, status: str, base: str | None) -> Record:
        numbers = [int(path.stem) for path in (self._repos.folder(repo) / "discussions").glob("*.json")]
        first = self._comment(author, text)
        return {
            "num": max(numbers, default=0) + 1,
            "id": secrets.token_hex(12),
            "title": title,
            "status": status,
            "author": author,
            "createdAt": first["createdAt"],
            "isPullRequest": base is not None,
            "base": base,
            "mergeCommitId": None,
            "events": [first],
        }

    def add_commit_event(self, repo: Repo, num: int, commit: Commit) -> None:
        self._append(repo, num, self._event("commit", commit.author, {"subject": commit.title, "oid": commit.oid}))

    def _append(self, repo: Repo, num: int, event: Record, **changes: Any) -> Record:
        with repo.changing():
            record = self.get(repo, num)
            record["events"].append(event)
            self._save(repo, {**record, **changes})
        return event

    def comment(self, repo: Repo, num: int, author: str, text: str) -> Record:
        return self._append(repo, num, self._comment(author, text))

    def rename(self, repo: Repo, num: int, author: str, title: str) -> Record:
        before = self.get(repo, num)["title"]
        return self._append(repo, num, self._event("title-change", author, {"from": before, "to": title}), title=title)

    def set_status(self, repo: Repo, num: int, author: str, status: str) -> Record:
        """Raises Refusal 400 for a status that cannot be reached."""
        with repo.changing():
            record = self.get(repo, num)
            if status not in ("open", "closed") or record["status"] in ("merged", status):
                raise bad_request(f"A discussion that is {record['status']} cannot become {status!r}")
            return self._append(repo, num, self._event("status-change", author, {"status": status}), status=status)

    def edit_comment(self, repo: Repo, num: int, author: str, comment_id: str, text: str | None) -> Record:
        """New text, or None to hide it for good. Raises Refusal 403 to anybody but its author."""
        with repo.changing():
            record = self.get(repo, num)
            event = next((e for e in record["events"] if e["id"] == comment_id and e["type"] == "comment"), None)
            if event is None:
                raise not_found(f"Comment {comment_id} not found")
            if event["author"]["name"] != author:
                raise forbidden("Only its author can change a comment")
            data = event["data"]
            if text is None:
                data.update(hidden=True, history=[])
                data["latest"]["raw"] = "This comment has been hidden"
            else:
                data["history"].append(dict(data["latest"]))
                data["edited"] = True
                data["latest"].update(raw=text, updatedAt=self._clock.now())
            self._save(repo, record)
            changed: Record = event
            return changed

    def changes(self, repo: Repo, record: Record) -> tuple[Commit, Commit, list[Operation]]:
        """The head of the base, the commit the pull request grew from, and what it changes."""
        head = self._commits.get(repo, repo.refs[pr_ref(record["num"])])
        base = self._commits.get(repo, repo.refs[record["base"]])
        start = self._commits.common_ancestor(repo, base, head) or base
        return base, start, _difference(start.files, head.files)

    def conflicts(self, repo: Repo, record: Record) -> list[str]:
        """Paths changed differently on both sides since they parted."""
        base, start, operations = self.changes(repo, record)
        clashing = []
        for operation in operations:
            wanted = operation.entry if isinstance(operation, Put) else None
            if base.files.get(operation.path) not in (start.files.get(operation.path), wanted):
                clashing.append(operation.path)
        return clashing

    def merge(self, repo: Repo, num: int, author: str) -> tuple[Commit, Commit]:
        """Squash an open pull request onto its base. Returns the base's head before and after.

        Raises Refusal 400 for drafts and conflicts.
        """
        with repo.changing():
            record = self.get(repo, num)
            if not record["isPullRequest"] or record["status"] != "open":
                raise bad_request(f"Only an open pull request can be merged; {num} is {record['status']}")
            clashing = self.conflicts(repo, record)
            if clashing:
                raise bad_request(f"This pull request has conflicts in {', '.join(clashing)}")
            base, _, operations = self.changes(repo, record)
            pending = [op for op in operations if base.files.get(op.path) != (op.entry if isinstance(op, Put) else None)]
            draft = CommitDraft(f"{record['title']} (#{num})", "", author, self._clock.now(), pending)
            before, after = self._commits.advance(repo, record["base"], None, draft)
            event = self._event("status-change", author, {"status": "merged"})
            self._append(repo, num, event, status="merged", mergeCommitId=after.oid)
            return before, after


def _difference(before: dict[str, Entry], after: dict[str, Entry]) -> list[Operation]:
    removed: list[Operation] = [Remove(path) for path in before if path not in after]
    return removed + [Put(path, entry) for path, entry in after.items() if before.get(path) != entry]
