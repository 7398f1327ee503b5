"""kill -9 at any moment of a pass: the same command goes on at the layer where it stood, and makes the same bytes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hubquant import bookmark, pipeline
from hubquant.artifact import Report, file_sha256
from hubquant.calibrate.source import with_texts
from hubquant.errors import FolderBusy
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.output import alone_in
from hubquant.progress import silent
from hubquant.recipe import Calibration, Recipe

VARIANTS = ("gptq-int4-g128", "awq-int4-g128", "gguf-q4_k_m", "gguf-q8_0", "gguf-auto@4.5bpw")
RECIPE = Recipe(variants=VARIANTS, calibration=Calibration(windows=4, window=64))
COMMAND = [sys.executable, "-m", "hubquant", "quantize", "--windows", "4", "--window", "64", "--no-evaluate"]

# The command in a process that kills itself: so long after the bookmark was saved that often, or before the nth file after that
# gets its final name. From outside a quick pass is done before a look at its bookmark would be followed by a signal.
MORTAL = """
import json, os, signal, sys, threading
from pathlib import Path
from hubquant.__main__ import main
from hubquant.bookmark import FILE

save, nth, seconds = int(sys.argv.pop(1)), int(sys.argv.pop(1)), float(sys.argv.pop(1))
replace, named = Path.replace, None

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def naming(path, target):
    global named
    if named is not None and target.name != "progress.json":
        named += 1
        if named == nth:
            die()
    found = replace(path, target)
    if target.name == FILE and json.loads(target.read_text())["saves"] == save:
        named = 0
        if not nth:
            threading.Timer(seconds, die).start()
    return found

Path.replace = naming
main()
"""


def command(model: Path, out: Path) -> list[str]:
    return [*COMMAND, *(part for name in VARIANTS for part in ("-v", name)), "-o", str(out), str(model)]


def start(model: Path, out: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command(model, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def saved(out: Path) -> dict[str, object]:
    """The bookmark as it lies there; empty if there is none."""
    try:
        found: dict[str, object] = json.loads((out / bookmark.FOLDER / bookmark.FILE).read_text())
        return found
    except FileNotFoundError:
        return {}


def published(out: Path) -> dict[str, str]:
    """Every file of the finished folder but the two that tell of time."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in ("hubquant.json", "progress.json"))
    return {str(path.relative_to(out)): file_sha256(path) for path in files}


@pytest.fixture(scope="module")
def undisturbed(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a pass makes that nothing disturbs, in this process."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    pipeline.quantize(bundled, out, with_texts(RECIPE), fingerprint_folder(bundled), silent)
    return published(out)


@pytest.mark.timeout(900)
def test_killed_again_and_again_a_pass_goes_on_and_makes_the_same_bytes(
    bundled: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """Layers are saves 2 to 5, each finished variant is one more. In a layer; while one is saved; while files get names."""
    out, reached = tmp_path / "out", 0
    arguments = command(bundled, out)[3:]
    for save, nth, seconds in ((2, 0, 0.05), (3, 1, 0.0), (6, 2, 0.0)):
        died = subprocess.run([sys.executable, "-c", MORTAL, str(save), str(nth), str(seconds), *arguments], capture_output=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
        now = int(str(saved(out)["saves"]))
        assert now > reached, "it did not go on where it stood"
        reached = now
    before = saved(out)
    told: list[tuple[int, int]] = []
    report = pipeline.quantize(
        bundled, out, with_texts(RECIPE), fingerprint_folder(bundled), lambda _, done, total: told.append((done, total))
    )
    assert told == [(0, 1), (4, 4)], "no layer was done twice"
    assert report.peak_memory_bytes >= int(str(before["peak_memory_bytes"])) > 0
    assert report.seconds > float(str(before["seconds"])) > 0
    assert published(out) == undisturbed
    assert {path.name for path in out.iterdir()} == {"hubquant.json", "progress.json", *(a.folder for a in report.artifacts)}


# The command in a process that kills itself instead of removing what a variant by sensitivity was chosen from
UNTIDY = """
import os, signal
from hubquant.__main__ import main
from hubquant.formats.gguf.auto import AutoArtifactWriter
from hubquant.formats.packedauto import PackedAutoWriter

def die(writer):
    os.kill(os.getpid(), signal.SIGKILL)

AutoArtifactWriter.discard = PackedAutoWriter.discard = die
main()
"""


def test_killed_before_it_has_tidied_up_a_pass_leaves_nothing_over(bundled: Path, tmp_path: Path) -> None:
    name, out = "gptq-auto@4.5bpw", tmp_path / "out"
    arguments = [*COMMAND[3:], "-v", name, "-o", str(out), str(bundled)]
    died = subprocess.run([sys.executable, "-c", UNTIDY, *arguments], capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert list(out.rglob("*.trials"))
    assert subprocess.run([sys.executable, "-m", "hubquant", *arguments]).returncode == 0
    folder = Report.read(out).artifact(name).folder
    assert {path.name for path in out.iterdir()} == {"hubquant.json", "progress.json", folder}
    assert not list(out.rglob("*.trials"))


def test_another_recipe_begins_anew(bundled: Path, tmp_path: Path) -> None:
    """Also where the same files would be written: a bookmark is of one key."""
    out = tmp_path / "out"
    process = start(bundled, out)
    while not saved(out):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    fewer = RECIPE.model_copy(update={"variants": ("gguf-q8_0",), "calibration": Calibration(windows=2, window=64)})
    base = fingerprint_folder(bundled)
    pipeline.quantize(bundled, out, with_texts(fewer), base, silent)
    pipeline.quantize(bundled, tmp_path / "clean", with_texts(fewer), base, silent)
    assert published(out) == published(tmp_path / "clean")


def test_a_second_process_leaves_the_first_one_s_folder_alone(bundled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with alone_in(out):
        (out / "progress.json").write_text("{}")
        second = subprocess.run(command(bundled, out), capture_output=True, text=True)
        assert second.returncode == FolderBusy.exit_code
        assert second.stderr == f"error: another hubquant is at work in {out}; wait until it is done, or name another folder\n"
        assert [path.name for path in out.iterdir()] == ["progress.json"]


def test_ctrl_c_leaves_nothing_half_written_under_a_final_name(bundled: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    out = tmp_path / "out"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored a child would ignore it too
    try:
        process = start(bundled, out)
    finally:
        signal.signal(signal.SIGINT, before)
    while not saved(out):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and said == b"interrupted\n"
    left = {name: value for name, value in published(out).items() if not name.endswith(".part")}
    assert all(name.startswith(bookmark.FOLDER) or undisturbed.get(name) == value for name, value in left.items())
    assert start(bundled, out).wait() == 0
    assert published(out) == undisturbed
