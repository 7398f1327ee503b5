"""kill -9 of a serving process in the middle of commits: the folder stays whole and nothing that was confirmed is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from hubquant.hub.local.server import LocalHub

SERVE = """
import sys
from pathlib import Path
from hubquant.hub.local.server import serve
serve(Path(sys.argv[1]), "127.0.0.1", 0, ready=lambda url: print(url, flush=True))
"""


def consistency_problems(root: Path) -> list[str]:
    """What is wrong in the folder of a Hub that is not running: refs to missing commits, commits with missing or short files."""
    problems = []
    for folder in (root / "repos").iterdir():
        refs = json.loads((folder / "refs.json").read_text())
        assert json.loads((folder / "repo.json").read_text())["key"] == folder.name
        for ref, oid in refs.items():
            while oid is not None:
                path = folder / "commits" / f"{oid}.json"
                if not path.exists():
                    problems.append(f"{folder.name} {ref}: commit {oid} is missing")
                    break
                commit = json.loads(path.read_text())
                for name, entry in commit["files"].items():
                    blob = root / "blobs" / entry["sha256"][:2] / entry["sha256"][2:]
                    if not blob.exists() or blob.stat().st_size != entry["size"]:
                        problems.append(f"{folder.name} {ref}: {name} is missing or short in {oid}")
                oid = commit["parents"][0] if commit["parents"] else None
    return problems


@pytest.mark.usefixtures("impatient")
def test_killed_in_the_middle_of_commits(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    confirmed: dict[str, bytes] = {}
    for round_ in range(3):
        with subprocess.Popen([sys.executable, "-c", SERVE, str(root)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            api = HfApi(endpoint=url, token="hf_demo_bot")
            api.create_repo("demo-bot/hit", exist_ok=True)
            killer = threading.Timer(0.3 + 0.2 * round_, os.kill, (process.pid, signal.SIGKILL))
            killer.start()
            number = 0
            try:
                while True:
                    number += 1
                    name, content = f"{round_}-{number}.bin", os.urandom(20_000)
                    operations = [CommitOperationAdd(name, content), CommitOperationAdd(f"{name}.txt", name.encode())]
                    api.create_commit("demo-bot/hit", operations, commit_message=name)
                    confirmed[name] = content
            except (httpx.TransportError, HfHubHTTPError, RuntimeError):
                pass
            killer.join()
            assert process.wait(timeout=10) == -signal.SIGKILL
        assert consistency_problems(root) == []
    assert confirmed
    with LocalHub(root) as hub:
        api = HfApi(endpoint=hub.url, token="hf_demo_bot")
        folder = Path(api.snapshot_download("demo-bot/hit", local_dir=tmp_path / "copy"))
        for name, content in confirmed.items():
            assert (folder / name).read_bytes() == content
            assert (folder / f"{name}.txt").read_text() == name
        pairs = {path.name.removesuffix(".txt") for path in folder.glob("*-*")}
        assert all((folder / name).exists() and (folder / f"{name}.txt").exists() for name in pairs)  # no half commits
        assert list((root / "temp").iterdir()) == []
        assert api.verify_repo_checksums("demo-bot/hit", local_dir=folder).mismatches == []
