"""The demo as a newcomer runs it: everything published and loaded back, then nothing to do, then only what changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubquant.demo.line import BASE, BOT, PICKLED, UPLOADER_TOKEN, DemoResult
from hubquant.hub.local.server import LocalHub
from hubquant.recipe import DEFAULT_VARIANTS

REPOS = {f"{BOT}/tiny-llama-AWQ", f"{BOT}/tiny-llama-GPTQ-Int4", f"{BOT}/tiny-llama-GGUF"}


def demo(folder: Path) -> DemoResult:
    """In a process of its own, as the settings of the Hub's client are read once."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-m", "hubquant", "demo", "--folder", str(folder), "--json"],
        capture_output=True, text=True, env=environment, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return DemoResult.model_validate(json.loads(done.stdout))


def change_base(folder: Path, edit: str, tmp_path: Path) -> None:
    """A new revision of the base, by its owner."""
    with LocalHub(folder / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=UPLOADER_TOKEN)
        path = Path(api.hf_hub_download(BASE, edit, local_dir=tmp_path / edit))
        content = bytearray(path.read_bytes())
        content[-1:] = bytes([content[-1] ^ 1]) if edit.endswith("safetensors") else b"\nMore words.\n"
        api.upload_file(repo_id=BASE, path_or_fileobj=bytes(content), path_in_repo=edit)


@pytest.mark.timeout(900)
def test_first_everything_then_nothing_then_only_what_changed(tmp_path: Path) -> None:
    folder = tmp_path / "hubquant-demo"
    first = demo(folder)
    assert not first.nothing_to_do
    assert {r.artifact.variant for r in first.rows} == set(DEFAULT_VARIANTS) and {r.repo for r in first.rows} == REPOS
    assert all(r.continuation for r in first.rows)
    assert "pickle" in first.decisions[PICKLED] and "5 variants" in first.decisions[BASE]

    second = demo(folder)
    assert second.nothing_to_do and not second.decisions.get(BASE, "").endswith("to make")
    assert [r.artifact for r in second.rows] == [r.artifact for r in first.rows]

    change_base(folder, "README.md", tmp_path)
    readme_only = demo(folder)
    assert readme_only.nothing_to_do and "up to date" in readme_only.decisions[BASE]

    change_base(folder, "model.safetensors", tmp_path)
    weights = demo(folder)
    assert not weights.nothing_to_do and {r.repo for r in weights.rows} == REPOS
    before, after = (next(r for r in result.rows if r.artifact.variant == "gguf-q8_0") for result in (first, weights))
    assert before.artifact.files != after.artifact.files
    shutil.rmtree(folder)
