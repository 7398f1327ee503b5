"""Running out of disk, clients that hang up, and repos deleted while somebody writes."""

import hashlib
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from hubquant.hub.local.server import LocalHub
from hubquant.hub.local.storage import BlobWriter, Store


def test_a_blob_is_whole_or_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with BlobWriter(store) as writer:
        writer.write(b"unfinished")
    assert list(store.temp.iterdir()) == []
    blob = store.put(b"whole")
    assert blob.sha256 == hashlib.sha256(b"whole").hexdigest()
    assert store.read(blob.sha256, 3) == b"who" and store.blob_size(blob.sha256) == 5
    store.close()


def test_another_thread_may_release_the_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    thread = threading.Thread(target=store.close)
    thread.start()
    thread.join()
    Store(tmp_path).close()


def test_unfinished_writes_are_cleared_at_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.new_temp_path().write_bytes(b"left by a killed process")
    store.close()
    store = Store(tmp_path)
    assert list(store.temp.iterdir()) == []
    store.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk(api: HfApi, local_hub: LocalHub, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write goes to /dev/full: the Hub says so, and nothing has changed."""
    store = local_hub.state.store
    new_path = Store.new_temp_path

    def on_full_disk(store: Store) -> Path:
        path = new_path(store)
        path.symlink_to("/dev/full")
        return path

    head = api.model_info(repo).sha
    with monkeypatch.context() as patched:
        patched.setattr(Store, "new_temp_path", on_full_disk)
        with pytest.raises(HfHubHTTPError) as caught:
            api.create_commit(repo, [CommitOperationAdd("a.txt", b"x" * 10_000)], commit_message="x")
        assert caught.value.response.status_code == 507
        with pytest.raises(HfHubHTTPError) as caught:
            api.update_repo_settings(repo, private=True)
        assert caught.value.response.status_code == 507
    assert list(store.temp.iterdir()) == []
    after = api.model_info(repo)
    assert after.sha == head and not after.private
    api.create_commit(repo, [CommitOperationAdd("a.txt", b"x" * 10_000)], commit_message="x")


def test_a_client_that_hangs_up_in_the_middle(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    oid = hashlib.sha256(bytes(2**20)).hexdigest()
    href = local_hub.state.uploads.plan(local_hub.url, oid, 2**20)["actions"]["upload"]["href"]
    parts = urlsplit(href)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        head = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**20}\r\n\r\n"
        connection.sendall(head.encode() + bytes(100_000))
    deadline = time.monotonic() + 5
    while list(local_hub.state.store.temp.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(local_hub.state.store.temp.iterdir()) == []
    assert local_hub.state.store.blob_size(oid) is None
    assert get_session().put(href, content=bytes(2**20)).status_code == 200


def test_a_repo_deleted_while_others_write(api: HfApi, local_hub: LocalHub, tmp_path: Path) -> None:
    """Nobody brings back a part of a deleted repo; the folder can be served again."""
    api.create_repo("demo-bot/gone")
    statuses: set[int] = set()

    def write() -> None:
        mine = HfApi(endpoint=local_hub.url, token="hf_demo_bot")
        try:
            for number in range(100):
                mine.create_discussion("demo-bot/gone", f"{number}")
        except HfHubHTTPError as error:
            statuses.add(error.response.status_code)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    time.sleep(0.1)
    api.delete_repo("demo-bot/gone")
    for writer in writers:
        writer.join()
    assert statuses == {404}
    assert list(local_hub.state.store.repos.iterdir()) == []
    local_hub.stop()
    with LocalHub(tmp_path / "hub") as again:
        assert not HfApi(endpoint=again.url, token="hf_demo_bot").repo_exists("demo-bot/gone")
