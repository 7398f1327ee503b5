import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubquant.artifact import Base, Report, file_sha256
from hubquant.config import Publish
from hubquant.errors import HubError, HubquantError, NotAuthorized, RepoGone
from hubquant.hub import card, manifest, publish, snapshot
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub
from hubquant.hub.publish import PublishedRepo
from hubquant.hub.records import Records
from hubquant.recipe import VARIANTS, Recipe

AWQ, GPTQ, GGUF = "demo-bot/tiny-llama-AWQ", "demo-bot/tiny-llama-GPTQ-Int4", "demo-bot/tiny-llama-GGUF"
SETTINGS = Publish(namespace="demo-bot")


# -- names and plans, without a Hub


@pytest.mark.parametrize(
    ("base", "variant", "repo_id"),
    [
        ("org/Model-7B", "awq-int4-g128", "bot/Model-7B-AWQ"),
        ("org/Model-7B", "gptq-int4-g128", "bot/Model-7B-GPTQ-Int4"),
        ("org/Model-7B", "gguf-q6_k", "bot/Model-7B-GGUF"),
        ("my model--v1..2-", "gguf-q6_k", "bot/my-model-v1.2-GGUF"),
        ("../..", "gguf-q6_k", "bot/model-GGUF"),
        ("org/" + "x" * 95 + "-y", "gptq-int4-g128", "bot/" + "x" * 86 + "-GPTQ-Int4"),
    ],
)
def test_names(base: str, variant: str, repo_id: str) -> None:
    assert publish.repo_id_for(base, VARIANTS[variant], "bot") == repo_id
    assert len(repo_id.split("/")[1]) <= 96


def test_the_repos_of_a_recipe(pinned: Base) -> None:
    assert publish.repo_ids(pinned, Recipe(), "demo-bot") == [GPTQ, AWQ, GGUF]


def test_plan_leaves_out_what_the_gate_refused(make: Any, pinned: Base, tmp_path: Path) -> None:
    report = make.report(tmp_path, pinned, failed=("awq-int4-g128", "gguf-q4_k_m"))
    assert [(repo.repo_id, repo.variants) for repo in publish.plan(report, "demo-bot")] == [
        (GPTQ, ("gptq-int4-g128",)),
        (GGUF, ("gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m")),
    ]
    assert publish.refused(report) == dict.fromkeys(("awq-int4-g128", "gguf-q4_k_m"), "1.9 > 1.15")


def test_what_was_not_measured_is_not_published(report: Report) -> None:
    unmeasured = report.model_copy(update={"verdicts": ()})
    assert publish.plan(unmeasured, "demo-bot") == []
    assert set(publish.refused(unmeasured).values()) == {"not measured"}


# -- the whole line on a Hub


class Line:
    """One base, one report, published as often as a test likes."""

    def __init__(self, hub: Hub, make: Any, repo_id: str, folder: Path) -> None:
        self.hub, self.make, self.folder = hub, make, folder
        self.base = snapshot.pin(hub, repo_id)
        self.model = snapshot.download(hub, self.base, folder / "model")
        self.report = make.report(folder / "out", self.base)
        self.records = Records(folder / "published")

    def publish(self, repo_id: str, settings: Publish = SETTINGS, **options: Any) -> PublishedRepo:
        repo = next(repo for repo in publish.plan(self.report, "demo-bot") if repo.repo_id == repo_id)
        given = {"model_folder": self.model, "records": self.records, **options}
        return publish.publish(self.hub, repo, self.report, self.folder / "out", settings, **given)


@pytest.fixture
def line(hub: Hub, make: Any, base_repo: str, tmp_path: Path) -> Line:
    return Line(hub, make, base_repo, tmp_path)


def commits(hub: Hub, repo_id: str) -> int:
    return len(hub.api.list_repo_commits(repo_id))


@pytest.mark.parametrize("repo_id", [AWQ, GPTQ, GGUF])
def test_a_repo_is_complete_public_and_reads_back(line: Line, hub: Hub, repo_id: str, tmp_path: Path) -> None:
    done = line.publish(repo_id)
    assert done.changed and done.url == f"{hub.endpoint}/{repo_id}" and done.commit == hub.head(repo_id)
    assert commits(hub, repo_id) == 2  # its creation and ours
    assert not hub.model_info(repo_id).private
    folder = Path(hub.api.snapshot_download(repo_id, local_dir=tmp_path / "read"))
    found = manifest.check(folder)
    assert found.repo_id == repo_id and found.files == done.files
    names = {path.name for path in folder.iterdir()} - {".cache", ".gitattributes"}
    assert names == {*done.files, "hubquant.json"}
    assert {"README.md", "LICENSE"} <= names
    weights = {name for name in names if name.endswith((".gguf", ".safetensors"))}
    if repo_id == GGUF:
        assert weights == {"imatrix.gguf", *(f"tiny-{m}.gguf" for m in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"))}
    else:
        assert weights == {"model.safetensors"}
        assert json.loads((folder / "config.json").read_text())["quantization_config"]
    assert card.hubquant_block((folder / "README.md").read_text()) == card.block_of(line.report)
    assert line.records.finished(repo_id)


def test_the_hub_sees_a_quantization_of_the_base(line: Line, hub: Hub) -> None:
    line.publish(AWQ)
    assert [info.id for info in hub.list_models(filter=f"base_model:quantized:{line.base.repo_id}")] == [AWQ]


def test_again_there_is_nothing_to_do(line: Line, hub: Hub) -> None:
    first = line.publish(AWQ)
    second = line.publish(AWQ)
    assert not second.changed
    assert (second.commit, second.files) == (first.commit, first.files)
    assert commits(hub, AWQ) == 2


def test_another_pass_over_the_same_base_commits_nothing(line: Line, hub: Hub) -> None:
    line.publish(AWQ)
    line.report = line.report.model_copy(update={"seconds": 99.0, "base": line.base.model_copy(update={"revision": "b" * 40})})
    assert not line.publish(AWQ).changed
    assert commits(hub, AWQ) == 2


@pytest.mark.parametrize("model_folder", [None, Path("gone")])
def test_without_the_base_on_disk_its_texts_are_fetched_again(line: Line, local_hub: LocalHub, model_folder: Path | None) -> None:
    first = line.publish(AWQ)
    local_hub.requests.clear()
    second = line.publish(AWQ, model_folder=model_folder)
    assert second.files == first.files
    fetched = {request.path.split("/")[-1] for request in local_hub.requests.find(f"{line.base.repo_id}/resolve/", "GET")}
    assert fetched == {"README.md", "LICENSE", "config.json", "tokenizer_config.json"}


def test_a_new_revision_replaces_files_and_deletes_the_outdated_ones(line: Line, hub: Hub, make: Any, tmp_path: Path) -> None:
    line.publish(GGUF)
    hub.api.upload_file(repo_id=GGUF, path_in_repo="figure.txt", path_or_fileobj=b"a person's")
    base = line.base.model_copy(update={"fingerprint": "9" * 64, "revision": "b" * 40})
    line.report = make.report(tmp_path / "out", base, names=("gguf-q4_k_m",), seed=1)
    done = line.publish(GGUF)
    assert done.changed and commits(hub, GGUF) == 4
    kept = {".gitattributes", "figure.txt"}
    assert set(hub.tree(GGUF, "main")) == {*done.files, "hubquant.json", *kept}
    assert "tiny-Q8_0.gguf" not in done.files
    assert (publish.desired_state(hub, GGUF) or {})["fingerprint"] == "9" * 64


def test_private_on_request_and_in_a_collection(line: Line, hub: Hub) -> None:
    line.publish(AWQ, Publish(namespace="demo-bot", private=True, collection="Quantized"))
    assert hub.model_info(AWQ).private
    (collection,) = hub.api.list_collections(owner="demo-bot")
    assert [item.item_id for item in hub.api.get_collection(collection.slug).items] == [AWQ]


def test_quantized_by(line: Line, hub: Hub) -> None:
    line.publish(AWQ, Publish(namespace="demo-bot", quantized_by="The Bots"))
    assert "quantized_by: The Bots" in (hub.read_text(AWQ, "README.md", "main") or "")


# -- what is refused, with nothing written


def test_a_file_that_is_not_the_one_that_was_measured(line: Line, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "out" / "awq-int4-g128" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(HubquantError, match=r"is not what was measured: model\.safetensors has the sha256"):
        line.publish(AWQ)
    assert not hub.repo_exists(AWQ)


@pytest.mark.parametrize(("text", "reason"), [("{}", "has no quantization_config"), ("{", "cannot read")])
def test_a_config_that_nothing_could_load(line: Line, hub: Hub, tmp_path: Path, text: str, reason: str) -> None:
    config = tmp_path / "out" / "awq-int4-g128" / "config.json"
    config.write_text(text)
    artifact = line.report.artifact("awq-int4-g128")
    files = {**artifact.files, "config.json": file_sha256(config)}
    line.report = line.report.model_copy(update={"artifacts": (artifact.model_copy(update={"files": files}),)})
    with pytest.raises(HubquantError, match=reason):
        line.publish(AWQ)
    assert not hub.repo_exists(AWQ)


def test_a_read_only_token(line: Line, local_hub: LocalHub) -> None:
    line.hub = Hub(local_hub.url, "hf_reader")
    local_hub.requests.clear()
    with pytest.raises(NotAuthorized, match="can only read"):
        line.publish(AWQ)
    assert not local_hub.requests.find("repos/create")


def test_a_person_has_the_name(line: Line, hub: Hub) -> None:
    hub.api.create_repo(AWQ, private=True)
    hub.api.upload_file(repo_id=AWQ, path_in_repo="README.md", path_or_fileobj=b"---\nlicense: mit\n---\nmine")
    head = hub.head(AWQ)
    with pytest.raises(HubError, match="hubquant did not make it, so nothing was changed"):
        line.publish(AWQ)
    assert hub.head(AWQ) == head and hub.model_info(AWQ).private


def test_a_public_empty_repo_is_somebodys_too(line: Line, hub: Hub) -> None:
    hub.api.create_repo(AWQ)
    with pytest.raises(HubError, match="hubquant did not make it"):
        line.publish(AWQ)


def test_another_organisations_model_of_the_same_name(line: Line, hub: Hub) -> None:
    line.publish(AWQ)
    line.report = line.report.model_copy(update={"base": line.base.model_copy(update={"repo_id": "other/tiny-llama"})})
    with pytest.raises(HubError, match="holds the quantized demo-org/tiny-llama; nothing was changed"):
        line.publish(AWQ)
    assert commits(hub, AWQ) == 2


def test_what_a_person_deleted_stays_deleted(line: Line, hub: Hub) -> None:
    line.publish(AWQ)
    hub.delete_repo(AWQ)
    with pytest.raises(RepoGone, match="has been deleted since, so it is not made again"):
        line.publish(AWQ)
    assert not hub.repo_exists(AWQ)
    line.records.path(AWQ).unlink()
    assert line.publish(AWQ).changed


def test_what_a_person_hid_stays_hidden(line: Line, hub: Hub) -> None:
    line.publish(AWQ)
    hub.set_private(AWQ, True)
    line.publish(AWQ)
    assert hub.model_info(AWQ).private


def test_a_base_that_vanished_is_still_published_from_disk(line: Line, org: HfApi, hub: Hub) -> None:
    org.delete_repo(line.base.repo_id)
    assert line.publish(AWQ).changed


# -- interrupted


def test_an_empty_private_leftover_is_filled(line: Line, hub: Hub) -> None:
    hub.ensure_repo(AWQ)
    assert publish.leftovers(hub, "demo-bot") == [AWQ]
    assert line.publish(AWQ).changed
    assert publish.leftovers(hub, "demo-bot") == []


def test_a_complete_but_private_leftover_is_made_public(line: Line, hub: Hub, local_hub: LocalHub) -> None:
    local_hub.faults.inject("/settings", "PUT", status=403)
    with pytest.raises(NotAuthorized):
        line.publish(AWQ)
    assert publish.leftovers(hub, "demo-bot", line.records) == [AWQ]
    done = line.publish(AWQ)
    assert not done.changed and not hub.model_info(AWQ).private
    assert publish.leftovers(hub, "demo-bot", line.records) == []


def test_leftovers_are_ours_only(line: Line, hub: Hub) -> None:
    hub.ensure_repo("demo-bot/diary")
    hub.ensure_repo("demo-bot/theirs-GGUF")
    hub.api.upload_file(repo_id="demo-bot/theirs-GGUF", path_in_repo="a.txt", path_or_fileobj=b"a")
    line.publish(GPTQ, Publish(namespace="demo-bot", private=True))
    assert publish.leftovers(hub, "demo-bot", line.records) == []
    assert publish.leftovers(hub, "demo-bot") == [GPTQ]  # without records nobody knows that it is finished


def test_a_person_commits_at_the_same_time(line: Line, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    line.publish(AWQ)
    line.report = line.report.model_copy(update={"base": line.base.model_copy(update={"fingerprint": "9" * 64})})
    commit = Hub.commit

    def slow(self: Hub, *args: Any, **kwargs: Any) -> str:
        monkeypatch.setattr(Hub, "commit", commit)
        hub.api.upload_file(repo_id=AWQ, path_in_repo="figure.txt", path_or_fileobj=b"a person's")
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(Hub, "commit", slow)
    assert line.publish(AWQ).changed
    assert "figure.txt" in hub.tree(AWQ, "main")
    assert commits(hub, AWQ) == 4


def test_desired_state(line: Line, hub: Hub) -> None:
    assert publish.desired_state(hub, AWQ) is None
    line.publish(AWQ)
    assert publish.desired_state(hub, AWQ) == card.block_of(line.report)
    assert publish.desired_state(hub, line.base.repo_id) is None
