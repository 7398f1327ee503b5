"""`hf quant` through the real `hf` command of huggingface_hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hubquant import __version__
from hubquant.errors import HubquantError
from hubquant.integrations import hf_extension

BIN = Path(sys.executable).parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def hf(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HOME": str(home), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(BIN / "hf"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_hf_quant_is_hubquant(home: Path) -> None:
    folder = hf_extension.install()
    assert folder == home / ".local/share/hf/extensions/hf-quant"
    answered = hf(home, "quant", "--version")
    assert (answered.returncode, answered.stdout.strip()) == (0, f"hubquant {__version__}"), answered.stderr
    wrong = hf(home, "quant", "quantise")
    assert wrong.returncode == 2
    assert "quantise" in wrong.stderr


def test_to_install_again_replaces_the_manifest(home: Path) -> None:
    folder = hf_extension.install()
    (folder / "manifest.json").write_text("{ broken")
    assert hf_extension.install() == folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["short_name"], manifest["type"]) == ("quant", "python")
    assert Path(manifest["executable_path"]) == BIN / "hf-quant"
    assert [p.name for p in folder.iterdir()] == ["manifest.json"]


def test_without_the_script_nothing_is_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(home / "bin" / "python"))
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(HubquantError, match=r"the script hf-quant is not installed beside .*bin/python"):
        hf_extension.install()
    assert not list(home.iterdir())
