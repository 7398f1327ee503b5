import numpy as np
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import BadRequestError
from safetensors.numpy import save

from hubquant.hub.local.listing import parse_sizes
from hubquant.hub.local.server import LocalHub


@pytest.fixture
def models(api: HfApi, other: HfApi, add) -> list[str]:
    """Seven models, oldest first; model-3 belongs to another account, model-5 is private."""
    for number in range(7):
        owner, client = ("demo-org", other) if number == 3 else ("demo-bot", api)
        client.create_repo(f"{owner}/model-{number}", private=number == 5)
    add("demo-bot/model-0", {"README.md": "---\nlicense: mit\npipeline_tag: text-generation\ntags: [tiny]\n---\n"})
    add("demo-bot/model-1", {"README.md": "---\nlicense: mit\n---\n", "model.safetensors": save({"a": np.zeros(2000, np.float32)})})
    add("demo-bot/model-2", {"README.md": "---\nbase_model: demo-bot/model-0\nbase_model_relation: quantized\n---\n"})
    return [f"demo-{'org' if number == 3 else 'bot'}/model-{number}" for number in range(7)]


def names(found) -> list[str]:
    return [info.id.partition("-")[2].rpartition("-")[2] for info in found]


def test_filters(api: HfApi, models: list[str]) -> None:
    assert sorted(names(api.list_models(author="demo-bot"))) == list("012456")
    assert names(api.list_models(author="Demo-Org")) == ["3"]
    assert sorted(names(api.list_models(filter="license:mit"))) == ["0", "1"]
    assert names(api.list_models(filter=["license:mit", "tiny"])) == ["0"]
    assert names(api.list_models(filter="base_model:quantized:demo-bot/model-0")) == ["2"]
    assert names(api.list_models(search="MODEL-4")) == ["4"]
    assert names(api.list_models(pipeline_tag="text-generation")) == ["0"]
    assert names(api.list_models(num_parameters="min:1K,max:3K")) == ["1"]
    assert names(api.list_models(num_parameters="min:1B")) == []
    api.update_repo_settings("demo-bot/model-4", gated="auto")
    assert names(api.list_models(gated=True)) == ["4"]
    assert list(api.list_datasets()) == [] == list(api.list_spaces())


def test_pages(api: HfApi, local_hub: LocalHub, models: list[str]) -> None:
    for page_size in (1, 2, 3, 100):
        local_hub.state.page_size = page_size
        assert names(api.list_models(sort="created_at")) == list("6543210")
        assert names(api.list_models(sort="last_modified")) == list("2106543")
        assert names(api.list_models(sort="created_at", limit=4)) == list("6543")
        assert len(list(api.list_models(sort="likes"))) == 7


def test_nothing_is_lost_or_doubled_when_repos_come_between_pages(api: HfApi, local_hub: LocalHub, models: list[str]) -> None:
    local_hub.state.page_size = 2
    listing = iter(api.list_models(sort="created_at"))
    seen = [next(listing), next(listing)]
    api.create_repo("demo-bot/model-7")
    api.delete_repo("demo-bot/model-6")
    assert names(seen + list(listing)) == list("6543210")


def test_what_is_shown(api: HfApi, models: list[str]) -> None:
    expanded = next(iter(api.list_models(search="model-1", expand=["createdAt", "lastModified", "sha", "safetensors", "gated"])))
    assert expanded.safetensors.total == 2000 and expanded.gated is False and len(expanded.sha) == 40
    assert expanded.tags is None and expanded.siblings is None
    plain = next(iter(api.list_models(search="model-1")))
    assert "license:mit" in plain.tags and plain.sha is None and plain.card_data is None
    full = next(iter(api.list_models(search="model-1", full=True, cardData=True, fetch_config=True)))
    assert full.sha == expanded.sha and full.card_data.license == "mit"
    assert "model.safetensors" in [sibling.rfilename for sibling in full.siblings]


def test_bad_queries(api: HfApi, models: list[str]) -> None:
    with pytest.raises(BadRequestError):
        list(api.list_models(num_parameters="about:3"))
    with pytest.raises(BadRequestError):
        list(api.list_models(sort="beauty"))  # type: ignore[arg-type]


def test_sizes() -> None:
    assert parse_sizes("min:6B,max:128B") == (6e9, 128e9)
    assert parse_sizes("max:1.5m") == (0, 1.5e6)
