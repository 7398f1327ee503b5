"""How work in progress is told: a callable (stage, done, total), for people as bars and for other processes as a small file."""

import json
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str, int, int], None]

FILE = "progress.json"


def silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


def into_file(folder: Path, then: Progress) -> Progress:
    """Also keeps FOLDER/progress.json up to date: {"stage", "done", "total"}, replaced in one step."""

    def tell(stage: str, done: int, total: int) -> None:
        partial = folder / f"{FILE}.part"
        partial.write_text(json.dumps({"stage": stage, "done": done, "total": total}))
        partial.replace(folder / FILE)
        then(stage, done, total)

    return tell
