"""The call after an import: once, after the module is whole, whoever imports it, and whatever else is tried before."""

import importlib
import importlib.resources
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubquant.hook import after_import

SOURCE = "VALUE = 1\n\ndef answer():\n    return 42\n"


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in a package that nobody has imported yet."""
    package = tmp_path / "latecomer"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "late.py").write_text(SOURCE)
    (package / "data.txt").write_text("data")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    yield "latecomer.late"
    sys.meta_path[:] = finders
    for name in ("latecomer", "latecomer.late", "latecomer.other"):
        sys.modules.pop(name, None)


def test_a_module_that_is_there_already_is_answered_at_once() -> None:
    calls: list[str] = []
    after_import("json", lambda: calls.append("json"))
    assert calls == ["json"]


def test_called_once_when_the_module_is_whole(late: str) -> None:
    seen: list[int] = []
    finders = list(sys.meta_path)
    after_import(late, lambda: seen.append(sys.modules[late].answer()))
    assert late not in sys.modules
    assert seen == []
    importlib.import_module(late)
    assert seen == [42]
    importlib.import_module(late)
    importlib.reload(sys.modules[late])
    assert seen == [42]
    assert sys.meta_path == finders


def test_a_from_import_counts_too(late: str) -> None:
    calls: list[str] = []
    after_import(late, lambda: calls.append("called"))
    exec("from latecomer.late import VALUE", {})
    assert calls == ["called"]


def test_the_package_alone_does_not_count(late: str) -> None:
    calls: list[str] = []
    after_import(late, lambda: calls.append("called"))
    importlib.import_module("latecomer")
    assert calls == []


def test_to_look_for_the_module_is_not_to_import_it(late: str) -> None:
    """Libraries ask find_spec whether something is installed; the call must still come with the import."""
    calls: list[str] = []
    after_import(late, lambda: calls.append("called"))
    assert importlib.util.find_spec(late) is not None
    assert importlib.util.find_spec(late) is not None
    assert calls == []
    importlib.import_module(late)
    assert calls == ["called"]


def test_a_failed_import_may_be_tried_again(late: str, tmp_path: Path) -> None:
    calls: list[str] = []
    after_import(late, lambda: calls.append("called"))
    (tmp_path / "latecomer" / "late.py").write_text("raise RuntimeError('not yet')")
    with pytest.raises(RuntimeError, match="not yet"):
        importlib.import_module(late)
    assert calls == []
    (tmp_path / "latecomer" / "late.py").write_text(SOURCE + "# now, and of another length\n")
    importlib.invalidate_caches()
    importlib.import_module(late)
    assert calls == ["called"]


def test_a_module_that_does_not_exist_stays_missing(late: str) -> None:
    after_import("latecomer.nowhere", lambda: pytest.fail("called"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("latecomer.nowhere")


def test_two_may_wait_for_the_same_module(late: str) -> None:
    calls: list[int] = []
    after_import(late, lambda: calls.append(1))
    after_import(late, lambda: calls.append(2))
    importlib.import_module(late)
    assert sorted(calls) == [1, 2]


def test_the_module_is_as_it_would_be_without_the_hook(late: str) -> None:
    after_import(late, lambda: None)
    module = importlib.import_module(late)
    plain = importlib.util.find_spec("latecomer.late")
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert plain is not None
    assert module.__spec__ is plain
    assert plain.loader is module.__loader__
    assert inspect.getsource(module) == SOURCE
    assert importlib.resources.files("latecomer").joinpath("data.txt").read_text() == "data"
