import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hubquant.hub.local.server import LocalHub


def test_life_of_a_collection(api: HfApi, other: HfApi, repo: str) -> None:
    made = api.create_collection("Tiny models!", description="All sizes")
    assert made.slug.startswith("demo-bot/tiny-models-") and made.owner == "demo-bot"
    with pytest.raises(HfHubHTTPError):
        api.create_collection("Tiny models!")
    assert api.create_collection("Tiny models!", exists_ok=True).slug == made.slug
    api.create_repo("demo-bot/two")
    api.add_collection_item(made.slug, repo, "model", note="the first")
    api.add_collection_item(made.slug, "demo-bot/two", "model")
    with pytest.raises(HfHubHTTPError) as caught:
        api.add_collection_item(made.slug, repo, "model")
    assert caught.value.response.status_code == 409
    read = api.add_collection_item(made.slug, repo, "model", exists_ok=True)
    assert [(item.item_id, item.note, item.position) for item in read.items] == [(repo, "the first", 0), ("demo-bot/two", None, 1)]
    api.update_collection_item(made.slug, read.items[1].item_object_id, position=0, note="now first")
    assert [item.item_id for item in api.get_collection(made.slug).items] == ["demo-bot/two", repo]
    renamed = api.update_collection_metadata(made.slug, title="Small models", theme="pink")
    assert renamed.title == "Small models" and api.get_collection(made.slug).slug == renamed.slug  # the old slug still leads there
    api.delete_collection_item(made.slug, read.items[0].item_object_id)
    assert [item.item_id for item in api.get_collection(made.slug).items] == ["demo-bot/two"]
    with pytest.raises(HfHubHTTPError):
        other.delete_collection(made.slug)
    api.delete_collection(made.slug)
    api.delete_collection(made.slug, missing_ok=True)


def test_what_others_see(api: HfApi, other: HfApi, repo: str) -> None:
    api.create_repo("demo-bot/hidden", private=True)
    shown = api.create_collection("Shown")
    api.create_collection("Hidden", private=True)
    api.add_collection_item(shown.slug, "demo-bot/hidden", "model")
    assert [collection.title for collection in other.list_collections(owner="demo-bot")] == ["Shown"]
    assert len(list(api.list_collections(owner="demo-bot"))) == 2
    assert other.get_collection(shown.slug).items == []
    with pytest.raises(HfHubHTTPError):
        other.add_collection_item(shown.slug, repo, "model")
    with pytest.raises(HfHubHTTPError):
        other.create_collection("Not mine", namespace="demo-bot")


def test_pages(api: HfApi, local_hub: LocalHub, repo: str) -> None:
    local_hub.state.page_size = 2
    for number in range(5):
        made = api.create_collection(f"Number {number}")
    api.add_collection_item(made.slug, repo, "model")
    assert [c.title for c in api.list_collections()] == [f"Number {number}" for number in (4, 3, 2, 1, 0)]
    assert [c.title for c in api.list_collections(item=f"models/{repo}")] == ["Number 4"]
