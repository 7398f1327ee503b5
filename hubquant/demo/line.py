"""The demo: a local Hub on loopback, the bundled model as a new base model on it, the bot once, everything loaded back."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hubquant.artifact import Artifact, Evaluation
from hubquant.config import Publish, Settings, Watch
from hubquant.console import METRICS, metrics, protocol_line, size
from hubquant.recipe import Calibration, Frozen, Recipe

BASE = "demo-org/tiny-llama"
PICKLED = "demo-org/tiny-pickle"
UPLOADER_TOKEN, BOT_TOKEN = "hf_demo_org", "hf_demo_bot"
BOT = "demo-bot"
PROMPT = "The captain of the ship was"
NEW_TOKENS = 8
PICKLED_CARD = "---\nlicense: mit\n---\nA model whose weights are a pickle: opening one runs code, so the bot declines it.\n"


class Row(Frozen):
    """One published variant: where it is, how big, what it lost, and what it says."""

    repo: str
    url: str
    artifact: Artifact
    evaluation: Evaluation
    continuation: str


class DemoResult(Frozen):
    """What `hubquant demo --json` prints."""

    decisions: dict[str, str]
    nothing_to_do: bool
    rows: tuple[Row, ...]
    seconds: float


class Demo:
    """Everything lives in `folder`: run again there, the bot finds nothing to do."""

    def __init__(self, folder: Path, out: Console) -> None:
        self.folder, self.out = folder.resolve(), out

    def run(self, keep_serving: bool = False) -> DemoResult:
        """Raises HubquantError if a step of the line fails."""
        started = time.monotonic()
        with self._hub() as url:
            self.out.rule("a local Hub")
            self.out.print(f"{url}, files under {self.folder / 'hub'}")
            self._upload(url)
            decisions, published_now = self._bot(url)
            rows = tuple(self._load_back(url))
            self._table(rows)
            if not published_now:
                self.out.print("The bot found nothing to do: what it would make is published already.")
            self.out.print(f"{time.monotonic() - started:.0f} s in all. Run it again: it finds nothing to do.")
            if keep_serving:
                self.out.print(f"The Hub stays open at {url}; Ctrl-C ends it.")
                signal.pause()
            else:
                self.out.print(f"To look at the pages: hubquant demo --folder {self.folder} --serve")
        return DemoResult(decisions=decisions, nothing_to_do=not published_now, rows=rows, seconds=time.monotonic() - started)

    @contextmanager
    def _hub(self) -> Iterator[str]:
        """The Hub, with the client's settings pointing to it: they are read when huggingface_hub is first imported."""
        from hubquant.hub.local.server import LocalHub

        with LocalHub(self.folder / "hub") as hub:
            os.environ.update(
                HF_ENDPOINT=hub.url,
                HF_HOME=str(self.folder / "hf-home"),
                HF_HUB_DISABLE_XET="1",
                HF_HUB_DISABLE_TELEMETRY="1",
                HF_HUB_DISABLE_PROGRESS_BARS="1",
                HF_HUB_DISABLE_UPDATE_CHECK="1",
                TQDM_DISABLE="1",
            )
            yield hub.url

    def _upload(self, url: str) -> None:
        """The base model and one that the policy must decline, unless they are there already."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=url, token=UPLOADER_TOKEN)
        if not api.repo_exists(BASE):
            with as_file(files("hubquant.demo") / "data" / "model") as model:
                api.create_repo(BASE)
                api.upload_folder(repo_id=BASE, folder_path=model, commit_message="A new base model")
            self.out.print(f"uploaded the bundled model as {BASE}, with the huggingface_hub client")
        if not api.repo_exists(PICKLED):
            api.create_repo(PICKLED)
            api.upload_file(repo_id=PICKLED, path_or_fileobj=PICKLED_CARD.encode(), path_in_repo="README.md")
            api.upload_file(repo_id=PICKLED, path_or_fileobj=b'{"model_type": "llama"}', path_in_repo="config.json")
            api.upload_file(repo_id=PICKLED, path_or_fileobj=b"\x80\x04N.", path_in_repo="pytorch_model.bin")
            self.out.print(f"uploaded {PICKLED}, whose weights are a pickle")

    def settings(self, url: str) -> Settings:
        """As a hubquant.toml would say it."""
        return Settings(
            state=self.folder / "state",
            endpoint=url,
            watch=Watch(organisations=("demo-org",)),
            recipe=Recipe(calibration=Calibration(windows=32)),
            publish=Publish(namespace=BOT),
        )

    def _bot(self, url: str) -> tuple[dict[str, str], bool]:
        """The bot once. Returns its decisions with their reasons, and whether it had work."""
        from hubquant.bot.worker import run_once
        from hubquant.botview import observer, summary_lines
        from hubquant.errors import HubquantError

        self.out.rule("the bot, once")
        with observer(self.out) as seen:
            summary = run_once(self.settings(url), token=BOT_TOKEN, observer=seen)
        for line in summary_lines(summary):
            self.out.print(line)
        if summary.failed:
            raise HubquantError(f"the demo's job failed: {summary.failed[0].error}")
        return {d.repo_id: d.reason for d in summary.decisions}, bool(summary.jobs)

    def _load_back(self, url: str) -> Iterator[Row]:
        """Every published variant through `from_pretrained`, from the Hub, and a few tokens from each."""
        from hubquant.hub.client import Hub
        from hubquant.hub.manifest import NAME, Manifest

        self.out.rule("every published repo, loaded back with from_pretrained")
        hub = Hub(url, token=False)
        for info in sorted(hub.list_models(author=BOT), key=lambda info: info.id):
            text = hub.read_text(info.id, NAME, "main") or ""
            manifest = Manifest.parse(text, info.id)
            for artifact in manifest.artifacts:
                evaluation = manifest.evaluation(artifact.variant)
                assert evaluation is not None, "only measured variants are published"
                yield Row(
                    repo=info.id,
                    url=f"{url}/{info.id}",
                    artifact=artifact,
                    evaluation=evaluation,
                    continuation=_generate(info.id, artifact),
                )

    def _table(self, rows: tuple[Row, ...]) -> None:
        table = Table("variant", "repo", title=f"{BASE}, quantized; repos of {BOT}")
        for heading in ("size", "bits/weight", *METRICS):
            table.add_column(heading, justify="right")
        table.add_column(f"“{PROMPT} …”")
        for row in rows:
            figures = (size(row.artifact.size_bytes), f"{row.artifact.bits_per_weight:.3f}", *metrics(row.evaluation))
            table.add_row(row.artifact.variant, row.repo.rpartition("/")[2], *figures, row.continuation)
        self.out.print(table)
        for protocol in dict.fromkeys(row.evaluation.protocol for row in rows):
            self.out.print(f"Measured under {protocol_line(protocol)}.", markup=False)
        for url in dict.fromkeys(row.url for row in rows):
            self.out.print(url)


def _generate(repo: str, artifact: Artifact) -> str:
    """A greedy continuation by the repo as anybody would load it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options: dict[str, Any] = {"gguf_file": artifact.main_file} if artifact.main_file.endswith(".gguf") else {}
    model = AutoModelForCausalLM.from_pretrained(repo, **options)
    tokenizer = AutoTokenizer.from_pretrained(repo, **options)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id or 0)
    return " ".join(tokenizer.decode(tokens[0, prompt.input_ids.shape[1] :], skip_special_tokens=True).split())
