"""Docs are tests: what the README says is made from the code, and every command and target it names exists."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from hubquant import cli
from hubquant.config import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_generated_parts_are_current() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tests/benchmarks/readme.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_named_exists() -> None:
    known = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    assert set(re.findall(r"\bhubquant ([a-z][a-z-]+)", README)) - {"steps"} <= known
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z0-9-]+)", README)) <= targets | {"test"}


def test_the_settings_shown_are_settings() -> None:
    shown = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert shown and Settings.model_validate(tomllib.loads(shown[1])).publish.namespace == "YOUR-NAME"


def test_every_file_and_heading_named_exists() -> None:
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    for name in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert name[1:] in headings if name.startswith("#") else (ROOT / name).exists(), name


def test_the_picture_is_one_screen_of_text() -> None:
    """Recorded on a terminal it held every state of every bar: eight times as high as wide."""
    picture = (ROOT / ".github" / "demo.svg").read_text()
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture)
    assert found and float(found[2]) < float(found[1])
    assert len(picture) < 100_000
