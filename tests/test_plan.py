"""A plan reads no weights, makes nothing, and says what would be."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from hubquant import cli
from hubquant.config import Publish, Settings
from hubquant.errors import UsageError
from hubquant.hub.local.server import LocalHub
from hubquant.plan import plan
from hubquant.recipe import Calibration, Recipe


def test_sizes_and_what_is_declined(bundled: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundled, tmp_path / "model")
    (folder / "model.safetensors").unlink()  # not needed
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}))
    found = plan(str(folder), Recipe(variants=("awq-int4-g128", "gguf-q8_0")), tmp_path / "not" / "there")
    packed, declined = found.variants
    assert packed.size_bytes == found.needs.output_bytes > 0 and not packed.declined
    assert declined.size_bytes == 0 and "GemmaForCausalLM" in declined.declined
    assert not (tmp_path / "not").exists()


def test_a_text_that_is_too_short_is_said_before_the_pass(bundled: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("A few words.")
    with pytest.raises(UsageError, match="fewer than one window of 512"):
        plan(str(bundled), Recipe(calibration=Calibration(source=str(tmp_path / "t.txt"))), tmp_path)


def test_for_people(bundled: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(cli.app, ["plan", str(bundled), "-o", str(tmp_path), "-v", "gguf-q8_0"]).stdout
    assert "3.7 M parameters" in said and "gguf-q8_0" in said and "policy" not in said
    for what in ("memory ", "disk ", "time about "):
        assert any(line.startswith(what) for line in said.splitlines())


def test_the_policy_s_answer_and_the_repos(bundled: Path, tmp_path: Path, local_hub: LocalHub) -> None:
    org = HfApi(endpoint=local_hub.url, token="hf_demo_org")
    org.create_repo("demo-org/tiny-llama")
    org.upload_folder(repo_id="demo-org/tiny-llama", folder_path=bundled)
    recipe = Recipe(variants=("gguf-q8_0", "gptq-int4-g128"))
    state, published = tmp_path / "state", Publish(namespace="demo-bot")
    settings = Settings(state=state, endpoint=local_hub.url, recipe=recipe, publish=published)
    found = plan("demo-org/tiny-llama", recipe, tmp_path, settings)
    assert found.policy == "2 variants to make"
    assert {each.repo_id for each in found.variants} == {"demo-bot/tiny-llama-GGUF", "demo-bot/tiny-llama-GPTQ-Int4"}
    assert not local_hub.requests.find(r"resolve/.*/model\.safetensors", "GET")
