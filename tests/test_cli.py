"""The command line as a user meets it: what it prints, where, and its exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from hubquant import __version__, cli
from hubquant.artifact import Report
from hubquant.errors import UsageError
from hubquant.hub.local.server import LocalHub
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.recipe import DEFAULT_VARIANTS, Recipe

COMMANDS = [c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback]


def hubquant(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "hubquant", *arguments],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0 and cli.app.registered_commands and len(result.stdout.splitlines()) > 5


def test_help_names_the_usual_variants_and_how_the_others_are_called() -> None:
    text = " ".join(CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["quantize", "--help"]).stdout.split())
    assert all(name in text for name in (*DEFAULT_VARIANTS, "gguf-iq3_m", "gguf-auto@4.5bpw", "every other mixture of llama.cpp"))


def test_version() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).stdout == f"hubquant {__version__}\n"


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = "import hubquant.cli, sys; print(sorted(set(sys.modules) & set(sys.argv)))"
    heavy = ["torch", "transformers", "gradio", "huggingface_hub", "dbos"]
    assert subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True).stdout == "[]\n"


def test_quantize_then_publish(bundled: Path, tmp_path: Path, local_hub: LocalHub) -> None:
    """A folder becomes a measured variant and then a repo; --json prints one document and nothing else on stdout."""
    out = tmp_path / "out"
    made = hubquant(
        "quantize", str(bundled), "-o", str(out), "-v", "gguf-q8_0", "--windows", "2", "--window", "64",
        "--protocol", "gptq-64", "--max-tokens", "512", "--json",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    report = Report.model_validate(json.loads(made.stdout))
    assert report.passed("gguf-q8_0") and report == Report.read(out)

    hub = {"HF_ENDPOINT": local_hub.url, "HF_TOKEN": "hf_demo_bot"}
    published = hubquant("publish", str(out), "--to", "demo-bot", "--json", **hub)
    assert published.returncode == 0, published.stderr
    assert [r["repo_id"] for r in json.loads(published.stdout)["published"]] == ["demo-bot/model-GGUF"]

    again = hubquant("publish", str(out), "--to", "demo-bot", **hub)
    assert again.stdout.split() == ["up", "to", "date:", f"{local_hub.url}/demo-bot/model-GGUF"]

    refused = hubquant("publish", str(out), "--to", "demo-bot", HF_ENDPOINT=local_hub.url, HF_TOKEN="hf_reader")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "error: " in refused.stderr


def test_a_model_on_a_hub(bundled: Path, tmp_path: Path, local_hub: LocalHub) -> None:
    """By its id, pinned to the revision that was read; the download is kept for the next time."""
    api = HfApi(endpoint=local_hub.url, token="hf_demo_org")
    api.create_repo("demo-org/tiny")
    sha = api.upload_folder(repo_id="demo-org/tiny", folder_path=bundled).oid
    environment = {"HF_ENDPOINT": local_hub.url, "HUBQUANT_CACHE": str(tmp_path / "cache")}
    command = ("quantize", "demo-org/tiny", "-v", "gguf-q8_0", "--windows", "1", "--window", "32", "--no-evaluate", "--json")
    for out in ("first", "second"):
        made = hubquant(*command, "-o", str(tmp_path / out), **environment)
        assert made.returncode == 0, made.stderr
        report = Report.model_validate(json.loads(made.stdout))
        assert (report.base.repo_id, report.base.revision) == ("demo-org/tiny", sha)
        assert (tmp_path / out / "gguf" / "tiny-Q8_0.gguf").exists()
    assert len(local_hub.requests.find(r"resolve/.*/model\.safetensors", "GET")) == 1
    gone = hubquant("quantize", "demo-org/none", "-o", str(tmp_path / "third"), **environment)
    assert gone.returncode == 1 and "demo-org/none" in gone.stderr and gone.stderr.count("\n") == 1


def test_known_errors_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("")
    for arguments, code, sentence in (
        (["quantize", str(tmp_path / "empty"), "-o", "out"], 1, "config.json"),
        (
            ["quantize", str(tmp_path / "empty"), "-o", "out", "-v", "gptq-int5"],
            2,
            "unknown variant 'gptq-int5'; did you mean gptq-int4-g128?",
        ),
        (["quantize", "x", "-o", str(tmp_path / "a file")], 2, "a file; name a folder with -o"),
        (["quantize", "x", "-o", str(tmp_path / "a file" / "out")], 2, "a file; name a folder with -o"),
        (["quantize", "x", "-o", "out", "--dynamic", "foo=int8-g64", "-v", "gguf-q8_0"], 2, "--dynamic is for GPTQ"),
        (["evaluate", str(tmp_path / "empty"), "--base", "x"], 2, "output folder of `hubquant quantize`"),
        (["run", "--once"], 2, "cannot read hubquant.toml"),
        (["jobs", "cancel"], 2, "cannot read hubquant.toml"),
    ):
        result = hubquant(*arguments, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (code, ""), result.stderr
        assert sentence in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_what_was_made_is_not_removed_unasked(bundled: Path, tmp_path: Path) -> None:
    """A second command in a folder is another pass, which would begin by clearing it."""
    out = tmp_path / "out"
    command = ["quantize", str(bundled), "-o", str(out), "--windows", "1", "--window", "32", "--no-evaluate"]
    said = CliRunner().invoke(cli.app, [*command, "-v", "gguf-q8_0"], catch_exceptions=False).stdout
    assert "gguf/model-Q8_0.gguf" in said and f"next: hubquant evaluate {out} --base {bundled}" in "".join(said.splitlines())
    made = sorted(path.name for path in out.rglob("*.gguf"))
    result = CliRunner().invoke(cli.app, [*command, "-v", "gguf-q4_0"])
    assert isinstance(result.exception, UsageError) and "--replace" in str(result.exception)
    assert sorted(path.name for path in out.rglob("*.gguf")) == made
    CliRunner().invoke(cli.app, [*command, "-v", "gguf-q4_0", "--replace"], catch_exceptions=False)
    assert not [name for name in made if name != "imatrix.gguf" and list(out.rglob(name))]


def test_another_base_is_not_measured_against(bundled: Path, tmp_path: Path) -> None:
    """Of the same shape it would give numbers, and they would be published."""
    base = fingerprint_folder(bundled)
    made = Report(hubquant_version="0", versions={}, base=base, recipe=Recipe(variants=("gguf-q8_0",)), artifacts=())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "hubquant.json").write_text(made.model_dump_json())
    other = shutil.copytree(bundled, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    result = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "out"), "--base", str(other)])
    assert isinstance(result.exception, UsageError) and f"was made from model {base.fingerprint[:12]}" in str(result.exception)
