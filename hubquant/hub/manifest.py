"""The published `hubquant.json`: the report of one pass restricted to one repo, with the hash of every file in it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubquant.artifact import Report, file_sha256
from hubquant.errors import HubquantError

NAME = "hubquant.json"


class Manifest(Report):
    """A Report whose artifacts lie at the repo's root. `files`: every file of the repo but the manifest itself, name → sha256."""

    repo_id: str
    files: dict[str, str]

    @classmethod
    def of(cls, report: Report, repo_id: str, variants: Iterable[str], files: Mapping[str, str]) -> "Manifest":
        part = restrict(report, variants)
        return cls(**dict(part), repo_id=repo_id, files=dict(sorted(files.items())))

    @classmethod
    def parse(cls, text: str, where: str) -> "Manifest":
        """Raises HubquantError naming the first thing that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the document"
            raise HubquantError(f"{NAME} of {where} is not a manifest of hubquant: {key}: {first['msg']}") from None

    def json_bytes(self) -> bytes:
        """The same manifest gives the same bytes."""
        return (self.model_dump_json(indent=1) + "\n").encode()


def restrict(report: Report, variants: Iterable[str]) -> Report:
    """The report as if only these variants had been made; their artifacts moved to the root, as in a published repo."""
    wanted = set(variants)
    update: dict[str, Any] = {
        "artifacts": tuple(a.model_copy(update={"folder": "."}) for a in report.artifacts if a.variant in wanted),
        "evaluations": tuple(e for e in report.evaluations if e.variant in wanted),
        "verdicts": tuple(v for v in report.verdicts if v.variant in wanted),
    }
    return report.model_copy(update=update)


def problems(folder: Path, files: Mapping[str, str]) -> list[str]:
    """What differs between the folder and the stated hashes, one sentence per file; [] if nothing."""
    found = []
    for name, sha256 in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif (actual := file_sha256(path)) != sha256:
            found.append(f"{name} has the sha256 {actual[:12]}…, not {sha256[:12]}…")
    return found


def check(folder: Path) -> Manifest:
    """The manifest of a downloaded repo, after comparing every file with it.

    Raises HubquantError naming what is missing or different.
    """
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
    except OSError as error:
        raise HubquantError(f"cannot read {folder / NAME}: {error.strerror}; is this a folder that hubquant published?") from None
    manifest = Manifest.parse(text, str(folder))
    if found := problems(folder, manifest.files):
        raise HubquantError(f"{folder} does not hold what its {NAME} states: {'; '.join(found)}; download it again")
    return manifest
