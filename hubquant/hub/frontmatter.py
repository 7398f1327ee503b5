"""The YAML block at the top of a README.md, read with bounds: it was written by strangers."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20


def front_matter(text: str) -> dict[str, Any]:
    """The block between the first two `---` lines; {} if there is none or it is not a mapping in YAML."""
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    end = next((i for i, line in enumerate(lines[1:], start=1) if line.rstrip() == "---"), None)
    if end is None:
        return {}
    try:
        found = yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: an impossible date, RecursionError: nested too deep
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def front_matter_of(folder: Path) -> dict[str, Any]:
    """Of the folder's README.md; {} without one."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        return front_matter(file.read(MAX_BYTES).decode("utf-8", errors="replace"))
