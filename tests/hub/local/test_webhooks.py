import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import HfApi, WebhookPayload
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from hubquant.hub.local.server import LocalHub


class Receiver:
    """A real HTTP server that keeps what it is sent."""

    def __init__(self) -> None:
        self.got: list[tuple[str | None, dict]] = []
        self.status = 200
        self._arrived = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._arrived:
                    outer.got.append((self.headers["X-Webhook-Secret"], body))
                    outer._arrived.notify_all()
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def wait_for(self, count: int) -> list[dict]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.got) >= count, timeout=5), self.got
            return [body for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


def test_everything_that_happens_is_told(api: HfApi, receiver: Receiver, add) -> None:
    api.create_webhook(url=receiver.url, watched=[{"type": "user", "name": "demo-bot"}], secret="hush")
    api.create_repo("demo-bot/one")
    head = add("demo-bot/one", {"a.txt": "x", "README.md": "---\ntags: [told]\n---\n"})
    add("demo-bot/one", {"b.txt": "x"}, create_pr=True)
    api.comment_discussion("demo-bot/one", 1, "Looks good")
    api.merge_pull_request("demo-bot/one", 1)
    api.update_repo_settings("demo-bot/one", gated="auto")
    api.move_repo("demo-bot/one", "demo-bot/two")
    api.delete_repo("demo-bot/two")
    bodies = receiver.wait_for(10)
    payloads = [WebhookPayload.model_validate(body) for body in bodies]
    assert [(payload.event.action, payload.event.scope) for payload in payloads] == [
        ("create", "repo"),
        ("update", "repo.content"),
        ("update", "repo.content"),
        ("create", "discussion"),
        ("create", "discussion.comment"),
        ("update", "repo.content"),
        ("update", "discussion"),
        ("update", "repo.config"),
        ("move", "repo"),
        ("delete", "repo"),
    ]
    assert payloads[1].updatedRefs[0].newSha == head == bodies[1]["repo"]["headSha"]
    assert payloads[1].repo.name == "demo-bot/one" and "told" in payloads[1].repo.tags
    assert payloads[2].updatedRefs[0].ref == "refs/pr/1" and payloads[2].updatedRefs[0].oldSha is None
    assert payloads[4].comment.content == "Looks good" and payloads[4].discussion.isPullRequest
    assert (
        payloads[6].discussion.status == "merged"
        and payloads[6].discussion.changes.mergeCommitId == payloads[5].updatedRefs[0].newSha
    )
    assert payloads[8].movedTo.name == "demo-bot/two" and payloads[9].repo.name == "demo-bot/two"
    assert {secret for secret, _ in receiver.got} == {"hush"}


def test_only_what_is_watched(api: HfApi, other: HfApi, receiver: Receiver, add) -> None:
    api.create_repo("demo-bot/watched")
    api.create_repo("demo-bot/unwatched")
    api.create_repo("demo-bot/private", private=True)
    other.create_webhook(url=receiver.url, watched=[{"type": "model", "name": "demo-bot/watched"}], domains=["repo"])
    other.create_webhook(url=receiver.url, watched=[{"type": "model", "name": "demo-bot/private"}])
    add("demo-bot/unwatched", {"a": "x"})
    add("demo-bot/private", {"a": "x"})  # its owner may not see this
    api.create_discussion("demo-bot/watched", "Not in its domains")
    add("demo-bot/watched", {"a": "x"})
    assert [body["repo"]["name"] for body in receiver.wait_for(1)] == ["demo-bot/watched"]
    api.delete_repo("demo-bot/watched")
    assert receiver.wait_for(2)[1]["event"] == {"action": "delete", "scope": "repo"}


def test_settings(api: HfApi, other: HfApi, receiver: Receiver, add, repo: str) -> None:
    hook = api.create_webhook(url=receiver.url, watched=[{"type": "user", "name": "demo-bot"}], secret="one")
    assert [found.id for found in api.list_webhooks()] == [hook.id] and other.list_webhooks() == []
    assert not hook.disabled and api.disable_webhook(hook.id).disabled
    add(repo, {"a": "unheard"})
    assert not api.enable_webhook(hook.id).disabled
    changed = api.update_webhook(hook.id, secret="two", watched=[{"type": "org", "name": "demo-bot"}])
    assert (changed.url, changed.secret, changed.watched[0].type) == (receiver.url, "two", "org")
    add(repo, {"b": "heard"})
    assert len(receiver.wait_for(1)) == 1 and receiver.got[0][0] == "two"
    with pytest.raises(HfHubHTTPError):
        other.delete_webhook(hook.id)
    api.delete_webhook(hook.id)
    with pytest.raises(HfHubHTTPError):
        api.get_webhook(hook.id)
    with pytest.raises(BadRequestError):
        api.create_webhook(url="ftp://x", watched=[])
    with pytest.raises(BadRequestError):
        api.create_webhook(url=receiver.url, watched=[{"type": "everything", "name": "x"}])


def test_a_receiver_that_fails_is_recorded_and_harms_nothing(
    api: HfApi, local_hub: LocalHub, receiver: Receiver, add, repo: str
) -> None:
    api.create_webhook(url="http://127.0.0.1:9/closed", watched=[{"type": "user", "name": "demo-bot"}])
    receiver.status = 500
    api.create_webhook(url=receiver.url, watched=[{"type": "user", "name": "demo-bot"}])
    add(repo, {"a": "x"})
    receiver.wait_for(1)
    local_hub.stop()
    sent = local_hub.state.webhooks.queue.sent
    assert sorted((delivery.status or 0) for delivery in sent) == [0, 500]
    assert next(delivery.error for delivery in sent if delivery.status is None)
