"""The page as a whole: what it is built from, and how it starts."""

import re
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import app
import gradio as gr
import pytest
import yaml
from gradio.helpers import special_args

from hubquant.config import Publish, Settings
from hubquant.errors import UsageError

SPACE = Path(app.__file__).parent


def components(page: gr.Blocks, kind: type) -> list[Any]:
    return [block for block in page.blocks.values() if isinstance(block, kind)]


def test_three_tabs_and_the_recipe_s_variants_chosen(settings: Settings) -> None:
    page = app.build(settings)
    assert [tab.label for tab in components(page, gr.Tab)] == ["Request", "Queue", "Published"]
    (choice,) = components(page, gr.CheckboxGroup)
    assert choice.value == list(settings.recipe.variants)
    assert components(page, gr.LoginButton) == []


@pytest.mark.usefixtures("on_a_space")
def test_on_a_space_there_is_a_sign_in(settings: Settings) -> None:
    assert len(components(app.build(settings), gr.LoginButton)) == 1


@pytest.mark.parametrize(("expires_in", "username"), [(3600, "ada"), (-1, None)])
def test_gradio_hands_the_signed_in_profile_to_both_buttons(settings: Settings, expires_in: float, username: str | None) -> None:
    page = app.build(settings)
    user = {"name": "Ada", "preferred_username": "ada", "profile": "", "picture": ""}
    request = SimpleNamespace(session={"oauth_info": {"userinfo": user, "expires_at": time.time() + expires_in}})
    handlers = [event.fn for event in page.fns.values() if event.name in ("on_check", "on_ask")]
    assert len(handlers) == 2
    for handler in handlers:
        inputs = [None] * (handler.__code__.co_argcount - 1)
        profile = special_args(handler, inputs, request)[0][-1]
        assert getattr(profile, "username", None) == username


def test_without_a_namespace_there_is_no_page(settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"publish\.namespace"):
        app.build(settings.model_copy(update={"publish": Publish()}))


def test_a_missing_config_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HUBQUANT_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: cannot read {tmp_path / 'none.toml'}: No such file")


def test_the_page_starts_no_worker() -> None:
    """Only `hubquant run` may take work from the queue."""
    text = "".join(path.read_text() for path in SPACE.rglob("*.py"))
    assert not re.search(r"bot\.(worker|workflow)|import (worker|workflow)|\bDBOS\b", text)


def test_the_front_matter_names_what_is_there() -> None:
    front_matter = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    assert (SPACE / front_matter["app_file"]).is_file()
    assert front_matter["sdk"] == "gradio"
    assert front_matter["hf_oauth"] is True
    project = SPACE.parent
    assert f"gradio=={front_matter['sdk_version']}\n" in (project / "constraints.txt").read_text()
    extras = tomllib.loads((project / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    required = (SPACE / "requirements.txt").read_text().strip()
    assert re.fullmatch(r"hubquant\[(\w+),(\w+)\]", required)
    assert {"bot", "space"} <= extras.keys()
