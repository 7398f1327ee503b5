"""The whole bot on a local Hub with the real heavy steps: one good model among bad ones, then the same again."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubquant.bot import worker
from hubquant.bot.policy import Decision
from hubquant.bot.queue import JobStatus
from hubquant.bot.worker import Observer, RunSummary
from hubquant.config import Settings, Watch
from hubquant.hub.local.server import LocalHub

AddModel = Callable[..., str]
TOKEN = "hf_demo_bot"
pytestmark = pytest.mark.timeout(900)  # heavy steps in subprocesses, on a machine that may be busy
REPOS = ["demo-bot/tiny-llama-GGUF", "demo-bot/tiny-llama-GPTQ-Int4"]


def nan(folder: Path) -> None:
    """One bfloat16 NaN, written into the file's bytes."""
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_size])
    tensor = header["model.layers.0.mlp.up_proj.weight"]
    assert tensor["dtype"] == "BF16"
    start = 8 + header_size + tensor["data_offsets"][0]
    content[start : start + 2] = (0x7FC0).to_bytes(2, "little")
    weights.write_bytes(content)


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
    (folder / "config.json").write_text(json.dumps(config))


def forbids_derivatives(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: ", "license: cc-by-nd-4.0 # ", 1))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@dataclass
class Story:
    """Two runs of the bot over the same Hub."""

    hub: LocalHub
    settings: Settings
    first: RunSummary
    heard: list[JobStatus]
    second: RunSummary
    left_in_work: list[str]

    def decision(self, name: str) -> Decision:
        return next(decision for decision in self.first.decisions if decision.repo_id == f"demo-org/{name}")

    def job(self, name: str) -> JobStatus:
        return next(job for job in self.first.jobs if job.repo_id == f"demo-org/{name}")


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, add_real_model: AddModel, make_settings: Callable[[Path, str], Settings]
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    with LocalHub(folder / "hub", test_hooks=True) as hub:
        settings = make_settings(folder / "state", hub.url)
        org = HfApi(endpoint=hub.url, token="hf_demo_org")
        # the newest is listed, decided on and worked first
        for name, damage in [("tiny-llama", lambda folder: None), ("vanishes", lambda folder: None), ("nan", nan),
                             ("truncated", truncated), ("unknown-architecture", unknown_architecture),
                             ("forbids", forbids_derivatives), ("pickled", pickled)]:  # fmt: skip
            add_real_model(hub.url, name, damage)
        heard: list[JobStatus] = []

        def after_decision(decision: Decision) -> None:
            if decision.repo_id == "demo-org/vanishes":  # its job is in the queue, behind the three before it
                org.delete_repo("demo-org/vanishes")

        first = worker.run_once(settings, TOKEN, Observer(after_decision, heard.append))
        left = [path.name for path in (settings.state / "work").iterdir()]
        second = worker.run_once(settings, TOKEN)
        yield Story(hub, settings, first, heard, second, left)


def test_the_good_model_is_published(story: Story) -> None:
    job = story.job("tiny-llama")
    assert (job.state, job.error, job.refused) == ("done", "", {})
    assert sorted(job.published) == REPOS
    assert sorted(story.first.published) == REPOS
    listed = {info.id: info for info in HfApi(endpoint=story.hub.url, token=False).list_models(author="demo-bot", full=True)}
    assert sorted(listed) == REPOS, "public, each once, nothing else"
    files = {repo: {sibling.rfilename for sibling in info.siblings or ()} for repo, info in listed.items()}
    assert {"README.md", "hubquant.json", "config.json", "model.safetensors", "tokenizer.json"} <= files[REPOS[1]]
    assert {"README.md", "hubquant.json", "imatrix.gguf"} <= files[REPOS[0]]
    assert len([name for name in files[REPOS[0]] if name.lower().endswith("q8_0.gguf")]) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [("forbids", "its licence cc-by-nd-4.0 forbids derivatives"), ("pickled", "has only pickled weights (pytorch_model.bin)")],
)
def test_bad_listings_are_declined_with_a_sentence(story: Story, name: str, reason: str) -> None:
    assert not story.decision(name).admitted
    assert reason in story.decision(name).reason
    assert f"demo-org/{name}" not in [job.repo_id for job in story.first.jobs]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vanishes", "demo-org/vanishes"),
        ("nan", "model.layers.0"),
        ("truncated", "model.safetensors"),
        ("unknown-architecture", "architecture 'vit' is not a causal language model"),
    ],
)
def test_bad_models_fail_with_one_sentence_and_the_queue_goes_on(story: Story, name: str, words: str) -> None:
    job = story.job(name)
    assert story.decision(name).admitted
    assert (job.state, job.published) == ("failed", ())
    assert words.lower() in job.error.lower()
    assert "\n" not in job.error
    assert "bug in hubquant" not in job.error
    assert "Traceback" not in job.error


def test_progress_was_heard_step_by_step(story: Story) -> None:
    heard = [status for status in story.heard if status.repo_id == "demo-org/tiny-llama"]
    steps = list(dict.fromkeys(status.step for status in heard if status.state == "running"))
    assert [step for step in steps if step in ("quantize", "evaluate")] == ["quantize", "evaluate"]
    layers = [status.progress.done for status in heard if status.step == "quantize" and status.progress]
    assert layers == sorted(layers)
    assert layers[-1] > 0
    assert [heard[0].state, heard[-1].state] == ["queued", "done"]


def test_the_second_run_finds_nothing_to_do(story: Story) -> None:
    assert story.second.decisions == ()
    assert story.second.jobs == ()


def test_nothing_is_left_in_the_work_folder(story: Story) -> None:
    assert story.left_in_work == []


def test_no_secret_in_the_state_folder(story: Story) -> None:
    for file in story.settings.state.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file


def test_a_fresh_state_folder_asks_the_hub_what_is_done(
    story: Story, tmp_path: Path, make_settings: Callable[[Path, str], Settings]
) -> None:
    settings = make_settings(tmp_path / "state", story.hub.url)
    settings = settings.model_copy(update={"watch": Watch(models=("demo-org/tiny-llama",))})
    summary = worker.run_once(settings, TOKEN)
    assert [decision.reason for decision in summary.decisions] == [f"up to date: {', '.join(reversed(REPOS))}"]
    assert summary.jobs == ()


def test_a_changed_readme_is_up_to_date(story: Story, add_real_model: AddModel) -> None:
    def readme(folder: Path) -> None:
        (folder / "README.md").write_text((folder / "README.md").read_text() + "\nOne more line.\n")

    add_real_model(story.hub.url, "tiny-llama", readme)
    summary = worker.run_once(story.settings, TOKEN)
    [decision] = summary.decisions
    assert decision.reason.startswith(f"up to date: made as job {story.job('tiny-llama').id}")
    assert summary.jobs == ()
