import json
from pathlib import Path

import pytest

from hubquant.artifact import Report, file_sha256
from hubquant.errors import HubquantError
from hubquant.hub import manifest
from hubquant.hub.manifest import Manifest


@pytest.fixture
def published(report: Report, tmp_path: Path) -> Path:
    """A repo's folder as a reader downloads it."""
    folder = tmp_path / "out" / "awq-int4-g128"
    files = {path.name: file_sha256(path) for path in folder.iterdir()}
    (folder / "hubquant.json").write_bytes(Manifest.of(report, "bot/tiny-AWQ", ["awq-int4-g128"], files).json_bytes())
    return folder


def test_a_manifest_holds_its_variants_only_and_reads_back(published: Path, report: Report) -> None:
    found = manifest.check(published)
    assert found.repo_id == "bot/tiny-AWQ"
    assert [a.variant for a in found.artifacts] == [e.variant for e in found.evaluations] == ["awq-int4-g128"]
    assert found.artifact("awq-int4-g128").folder == "."
    assert found.passed("awq-int4-g128")
    assert found.recipe == report.recipe and found.base == report.base


def test_the_same_report_gives_the_same_bytes(report: Report) -> None:
    first = Manifest.of(report, "bot/x", ["gguf-q6_k", "gguf-q8_0"], {"b": "1", "a": "2"})
    second = Manifest.of(report, "bot/x", ["gguf-q8_0", "gguf-q6_k"], {"a": "2", "b": "1"})
    assert first.json_bytes() == second.json_bytes()


def test_a_missing_and_a_changed_file_are_named(published: Path) -> None:
    (published / "tokenizer.json").unlink()
    (published / "config.json").write_text("{}")
    with pytest.raises(HubquantError, match=r"config\.json has the sha256 44136fa355b3….*; tokenizer\.json is missing"):
        manifest.check(published)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(HubquantError, match="is this a folder that hubquant published"):
        manifest.check(tmp_path)


@pytest.mark.parametrize("change", [{"repo_id": None}, {"schema_version": 2}, {"unknown": 1}])
def test_a_manifest_of_another_shape(published: Path, change: dict[str, object]) -> None:
    path = published / "hubquant.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(HubquantError, match=f"not a manifest of hubquant: {next(iter(change))}"):
        manifest.check(published)
