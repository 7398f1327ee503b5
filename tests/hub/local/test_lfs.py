import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import get_session

from hubquant.hub.local.server import LocalHub


def batch(hub: LocalHub, repo: str, oid: str, size: int) -> dict:
    body = {
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": [{"oid": oid, "size": size}],
        "hash_algo": "sha256",
    }
    headers = {"Authorization": "Bearer hf_demo_bot"}
    answer = get_session().post(f"{hub.url}/{repo}.git/info/lfs/objects/batch", json=body, headers=headers)
    answer.raise_for_status()
    return answer.json()["objects"][0]


def test_one_put(api: HfApi, local_hub: LocalHub, repo: str, tmp_path: Path) -> None:
    content = os.urandom(11 * 2**20)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    api.upload_file(path_or_fileobj=path, path_in_repo="model.safetensors", repo_id=repo)
    info = api.get_paths_info(repo, ["model.safetensors"])[0]
    assert info.lfs.sha256 == hashlib.sha256(content).hexdigest() and info.size == len(content)
    assert len(local_hub.requests.find("_lfs/.*/whole", "PUT")) == 1
    assert Path(api.hf_hub_download(repo, "model.safetensors")).read_bytes() == content
    api.create_repo("demo-bot/again")
    api.upload_file(path_or_fileobj=path, path_in_repo="copy.safetensors", repo_id="demo-bot/again")
    assert len(local_hub.requests.find("_lfs/", "PUT")) == 1  # known content is not sent twice


@pytest.mark.usefixtures("impatient")
def test_parts(api: HfApi, local_hub: LocalHub, repo: str, tmp_path: Path) -> None:
    local_hub.state.uploads.chunk_size = 2**20
    content = os.urandom(5 * 2**19)  # two and a half parts
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    local_hub.faults.inject("part-2", "PUT", status=500)
    api.upload_file(path_or_fileobj=path, path_in_repo="model.gguf", repo_id=repo)
    puts = local_hub.requests.find("part-", "PUT")
    assert [request.status for request in puts] == [200, 500, 200, 200]
    assert Path(api.hf_hub_download(repo, "model.gguf")).read_bytes() == content
    assert list(local_hub.state.store.temp.iterdir()) == []


def test_small_binary_and_large_text_go_to_lfs(api: HfApi, repo: str, add) -> None:
    add(repo, {"a.weird": b"\x00\x01", "b.txt": "x" * (10 * 2**20 + 1), "c.txt": "é" * 300, "d.bin": b"text"})
    kinds = {info.path: info.lfs is not None for info in api.list_repo_tree(repo) if info.path != ".gitattributes"}
    assert kinds == {"a.weird": True, "b.txt": True, "c.txt": False, "d.bin": True}


def test_wrong_bytes_are_refused(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    oid = hashlib.sha256(b"promised").hexdigest()
    href = batch(local_hub, repo, oid, 8)["actions"]["upload"]["href"]
    assert get_session().put(href, content=b"PROMISED").status_code == 400
    assert get_session().put(href, content=b"promised and more").status_code == 400
    assert get_session().put(href.replace("size=8", "size=9"), content=b"promised").status_code == 403
    assert local_hub.state.store.blob_size(oid) is None
    assert list(local_hub.state.store.temp.iterdir()) == []
    verify = batch(local_hub, repo, oid, 8)["actions"]["verify"]["href"]
    assert get_session().post(verify, json={}).status_code == 404
    assert get_session().put(href, content=b"promised").status_code == 200
    assert get_session().post(verify, json={}).status_code == 200
    assert "actions" not in batch(local_hub, repo, oid, 8)


def test_completing_twice_and_too_early(local_hub: LocalHub, repo: str) -> None:
    local_hub.state.uploads.chunk_size = 4
    oid = hashlib.sha256(b"promised").hexdigest()
    upload = batch(local_hub, repo, oid, 8)["actions"]["upload"]
    get_session().put(upload["header"]["00001"], content=b"prom").raise_for_status()
    assert get_session().post(upload["href"], json={}).status_code == 400
    get_session().put(upload["header"]["00002"], content=b"ised").raise_for_status()
    assert get_session().post(upload["href"], json={}).status_code == 200
    assert get_session().post(upload["href"], json={}).status_code == 200


def test_bad_object_in_a_batch(local_hub: LocalHub, repo: str) -> None:
    assert batch(local_hub, repo, "../../etc/passwd", 8)["error"]["code"] == 422


@pytest.mark.parametrize("chunk_size", [2**30, 16 * 2**20])
def test_large_files_are_streamed(api: HfApi, local_hub: LocalHub, repo: str, tmp_path: Path, chunk_size: int) -> None:
    """128 MiB up and down, client and server in this process: at most half of it is ever in memory (44 MiB at any size)."""
    local_hub.state.uploads.chunk_size = chunk_size
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        for number in range(64):
            file.write(bytes([number]) * 2**21)
    tracemalloc.start()  # what Python holds at its peak; the process's own size keeps what earlier tests freed, or not
    try:
        api.create_commit(repo, [CommitOperationAdd(path.name, path)], commit_message="Large")
        downloaded = Path(api.hf_hub_download(repo, path.name, local_dir=tmp_path / "down"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size // 2
    assert downloaded.stat().st_size == path.stat().st_size
