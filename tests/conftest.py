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

import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from hubquant.hub.local.server import LocalHub

# of a few tests that take minutes: begun last, one core would wait for the other
FIRST = ("test_line.py", "test_needs.py", "test_resume.py", "test_worker.py", "test_workflow.py", "test_kill.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


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
def mixture_of_experts(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random mixture of experts by its model_type, in its family's published form, with the bundled tokenizer.
    Shared: never changed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"vocab_size": 2048, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    latent = {"num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    grouped = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    deepseek = {**latent, **grouped, "intermediate_size": 96, "moe_intermediate_size": 32, "n_shared_experts": 2}
    changes: dict[str, dict[str, object]] = {
        "mixtral": {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2},
        "qwen3_moe": {
            **{"head_dim": 16, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2},
            "norm_topk_prob": True,
        },
        "deepseek_v2": {**deepseek, "q_lora_rank": None, "topk_method": "greedy"},
        "deepseek_v3": {**deepseek, "q_lora_rank": 32},
        "gpt_oss": {"head_dim": 16, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    }
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            torch.manual_seed(0)
            config = AutoConfig.for_model(model_type, **{**common, **changes[model_type]})
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if tensor.dim() > 1 or name.endswith(("bias", "sinks")):
                    torch.nn.init.normal_(tensor, std=0.1)
            made[model_type] = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(made[model_type])
            for file in bundled.glob("tokenizer*"):
                shutil.copyfile(file, made[model_type] / file.name)
        return made[model_type]

    return make


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
