"""What this machine has published, so that a repo which a person deleted, or hid, stays so. The Hub, not this folder, is the
truth about what is published: without it, only that memory is lost."""

import json
import os
from pathlib import Path


class Records:
    """One small file per repo under `folder`; each is replaced as a whole, so several workers need no lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, repo_id: str) -> None:
        """The repo is about to be created by us: found empty or private later, it is our leftover."""
        if self._read(repo_id) is None:
            self._write(repo_id, {"repo_id": repo_id, "commit": ""})

    def finish(self, repo_id: str, commit: str) -> None:
        """The repo is complete at this commit and visible as the settings want it."""
        self._write(repo_id, {"repo_id": repo_id, "commit": commit})

    def begun(self, repo_id: str) -> bool:
        return self._read(repo_id) is not None

    def finished(self, repo_id: str) -> bool:
        return bool((self._read(repo_id) or {}).get("commit"))

    def path(self, repo_id: str) -> Path:
        """The file to delete so that hubquant makes the repo again."""
        return self.folder / f"{repo_id.replace('/', '--')}.json"  # a repo id holds no --

    def _read(self, repo_id: str) -> dict[str, str] | None:
        try:
            found = json.loads(self.path(repo_id).read_text())
        except FileNotFoundError:
            return None
        return found if isinstance(found, dict) else None

    def _write(self, repo_id: str, record: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(repo_id)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(record))
        temporary.replace(path)
