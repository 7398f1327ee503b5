"""What the watcher sees of a Hub, poll after poll."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubquant.bot.watch import Marks, candidates
from hubquant.config import Policy, Settings, Watch
from hubquant.errors import HubUnavailable
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub

AddModel = Callable[..., str]
HOUR = 3600.0


@pytest.fixture(autouse=True)
def state_folder(settings: Settings) -> None:
    settings.state.mkdir()


def poll(hub: Hub, settings: Settings, later: tuple[str, ...] = ()) -> list[str]:
    """The names of one poll's candidates, each decided on for good unless it is in `later`; as the worker does it."""
    marks = Marks.read(settings)
    names = []
    for info in candidates(hub, settings.watch, marks):
        name = info.id.split("/")[1]
        names.append(name)
        marks.decided(info, later=name in later)
    marks.write(settings)
    return sorted(names)


def watching(settings: Settings, **watch: object) -> Settings:
    return settings.model_copy(update={"watch": Watch.model_validate(watch)})


def test_each_commit_of_a_model_comes_once(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    add_model("one")
    add_model("two")
    assert poll(hub, settings) == ["one", "two"]
    assert poll(hub, settings) == []
    add_model("three")
    add_model("one", license="mit")
    assert poll(hub, settings) == ["one", "three"]
    assert poll(hub, settings) == []


def test_many_pages_each_model_once(tmp_path: Path, settings: Settings, local_hub: LocalHub, add_model: AddModel) -> None:
    names = sorted(add_model(f"m{number}").split("/")[1] for number in range(7))
    local_hub.stop()
    with LocalHub(tmp_path / "hub", page_size=2) as paged:
        assert poll(Hub(paged.url, "hf_demo_bot"), settings) == names
        assert len(paged.requests.find("^/api/models$", "GET")) >= 8, "two orders, four pages each"


def test_later_polls_read_no_further_than_the_overlap(
    tmp_path: Path, settings: Settings, local_hub: LocalHub, add_model: AddModel
) -> None:
    for number in range(6):
        add_model(f"old{number}")
    local_hub.stop()
    with LocalHub(tmp_path / "hub", page_size=2) as paged:
        client = Hub(paged.url, "hf_demo_bot")
        poll(client, settings)
        paged.state.clock.offset_seconds = 2 * HOUR
        org = HfApi(endpoint=paged.url, token="hf_demo_org")
        org.create_repo("demo-org/new")
        poll(client, settings)
        paged.requests.clear()
        assert poll(client, settings) == []
        assert len(paged.requests.find("^/api/models$", "GET")) == 2, "one page for each order"


def test_the_first_poll_looks_back_some_days_the_next_ones_at_what_is_new(
    hub: Hub, settings: Settings, local_hub: LocalHub, add_model: AddModel
) -> None:
    local_hub.state.clock.offset_seconds = -48 * HOUR
    add_model("old")
    local_hub.state.clock.offset_seconds = 0
    add_model("young")
    day = watching(settings, organisations=["demo-org"], lookback_days=1)
    assert poll(hub, day) == ["young"]
    add_model("old", license="mit")
    assert poll(hub, day) == ["old"], "changed now, however old"


def test_tags(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    add_model("english", tags="poetry")
    add_model("other", tags="prose")
    assert poll(hub, watching(settings, tags=["poetry"])) == ["english"]


def test_single_models_also_before_they_exist(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    named = watching(settings, models=["demo-org/wanted", "demo-org/other"])
    add_model("other")
    add_model("unwatched")
    assert poll(hub, named) == ["other"]
    add_model("wanted")
    assert poll(hub, named) == ["wanted"]
    assert poll(hub, named) == []
    add_model("wanted", license="mit")
    assert poll(hub, named) == ["wanted"]


def test_a_model_found_in_two_ways_comes_once(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    add_model("one", tags="poetry")
    everything = watching(settings, organisations=["demo-org"], tags=["poetry"], models=["demo-org/one"])
    assert poll(hub, everything) == ["one"]


def test_what_was_put_off_comes_again_even_when_the_listing_has_moved_on(
    hub: Hub, settings: Settings, local_hub: LocalHub, add_model: AddModel
) -> None:
    add_model("cooling")
    assert poll(hub, settings, later=("cooling",)) == ["cooling"]
    local_hub.state.clock.offset_seconds = 2 * HOUR
    add_model("new")
    assert poll(hub, settings, later=("cooling",)) == ["cooling", "new"]
    assert poll(hub, settings) == ["cooling"]
    assert poll(hub, settings) == []


def test_what_hubquant_published_is_no_candidate(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    add_model("tiny-GGUF", tags="gguf, quantized, hubquant")
    add_model("tiny")
    assert poll(hub, settings) == ["tiny"]


def test_other_settings_mean_another_look(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    add_model("one")
    assert poll(hub, settings) == ["one"]
    stricter = settings.model_copy(update={"policy": Policy(min_parameters=10)})
    assert poll(hub, stricter) == ["one"]
    assert poll(hub, stricter) == []


def test_a_poll_that_was_cut_short_is_repeated(hub: Hub, settings: Settings, local_hub: LocalHub, add_model: AddModel) -> None:
    add_model("one")
    local_hub.faults.inject("^/api/models$", "GET", status=503, skip=1, times=9)
    with pytest.raises(HubUnavailable):
        poll(hub, settings)
    local_hub.faults.clear()
    assert poll(hub, settings) == ["one"], "nothing was remembered of the poll that failed"


def test_the_memory_does_not_grow_with_models_no_longer_listed(
    hub: Hub, settings: Settings, local_hub: LocalHub, add_model: AddModel
) -> None:
    add_model("old")
    poll(hub, settings)
    local_hub.state.clock.offset_seconds = 2 * HOUR
    add_model("new")
    poll(hub, settings)
    poll(hub, settings)
    assert list(Marks.read(settings).seen) == ["demo-org/new"]


def test_unreadable_marks_are_forgotten(hub: Hub, settings: Settings, add_model: AddModel) -> None:
    add_model("one")
    poll(hub, settings)
    (settings.state / "watch.json").write_text("{")
    assert poll(hub, settings) == ["one"]
