import hashlib
import subprocess
from pathlib import Path

import pytest
from huggingface_hub.hf_api import RepoFile

from hubquant.artifact import file_sha256
from hubquant.hub.files import File, RemoteFile, git_oid


def entry(oid: str, sha256: str | None = None) -> RepoFile:
    lfs = {"lfs": {"oid": sha256, "size": 3, "pointerSize": 9}} if sha256 else {}
    return RepoFile(path="a", size=3, oid=oid, **lfs)


def test_git_names_blobs_as_we_do(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc\n")
    found = subprocess.run(["git", "hash-object", str(tmp_path / "a")], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("git is not installed")
    assert git_oid(tmp_path / "a") == git_oid(b"abc\n") == found.stdout.strip()


def test_a_file_against_a_tree() -> None:
    file = File.of_bytes("a", b"abc")
    assert file.is_at(entry("0" * 40, hashlib.sha256(b"abc").hexdigest()))
    assert file.is_at(entry(git_oid(b"abc")))
    assert not file.is_at(entry(git_oid(b"abc"), "0" * 64))
    assert not file.is_at(entry(git_oid(b"abd")))
    assert not file.is_at(None)


def test_a_remote_file_against_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert RemoteFile("a", file_sha256(path), 3).is_at(path)
    assert RemoteFile("a", git_oid(path), 3).is_at(path)
    assert not RemoteFile("a", file_sha256(path), 4).is_at(path)
    assert not RemoteFile("a", "0" * 64, 3).is_at(path)
    assert not RemoteFile("a", file_sha256(path), 3).is_at(tmp_path / "b")
