"""Shared by all tests. huggingface_hub reads its environment when it is imported, so it is set here first."""

# ruff: noqa: E402 the environment comes before the imports that read it

import os
import tempfile
import threading

HF_HOME = tempfile.TemporaryDirectory(prefix="hubquant-tests-")
os.environ["HF_HOME"] = HF_HOME.name  # nothing of a developer's own cache or login is read or written
os.environ["HF_HUB_DISABLE_XET"] = "1"  # the local Hub stores large files through LFS
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # models this small are slower on several threads, and the same bytes come out everywhere
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HF_HUB_OFFLINE", None)

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from hubquant.hub.local.server import LocalHub


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub and a download cache of its own for each test, with the default users and test hooks.

    HfApi(endpoint=local_hub.url, token="hf_demo_bot") is its client.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    hub = LocalHub(tmp_path / "hub", test_hooks=True).start()
    yield hub
    threading.Thread(target=hub.stop).start()  # a clean stop takes 0.2 s, for which no test has to wait


@pytest.fixture(scope="session")
def bundled() -> Path:
    """The demo's model folder."""
    return Path(str(files("hubquant.demo"))) / "data" / "model"


@pytest.fixture(scope="session")
def quantized_demo(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model's output folder with four variants, measured on few tokens. Shared: read it, copy it, never change it."""
    from hubquant import pipeline
    from hubquant.calibrate.source import with_texts
    from hubquant.hub.snapshot import fingerprint_folder
    from hubquant.progress import silent
    from hubquant.recipe import Calibration, EvaluationPlan, Recipe

    recipe = Recipe(
        variants=("gptq-int4-g128", "awq-int4-g128", "gguf-q8_0", "gguf-q4_k_m"),
        calibration=Calibration(windows=4),
        evaluation=EvaluationPlan(max_tokens=1024),
    )
    out = tmp_path_factory.mktemp("quantized") / "demo"
    pipeline.quantize(bundled, out, with_texts(recipe), fingerprint_folder(bundled), silent)
    pipeline.evaluate(out, bundled, silent)
    return out
