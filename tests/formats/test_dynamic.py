"""Rules for what deviates: every linear gets its own setting back, and vLLM's joined linears the one of their parts."""

import re
from random import Random
from typing import Any

import pytest

from hubquant.formats.dynamic import JOINED, of_linear, rules
from hubquant.quantize.grid import Grid
from hubquant.recipe import BITS, GROUP_SIZES, ROW

DEFAULT = Grid(4, 128, True)
NAMES = (
    *(f"self_attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *(f"mlp.experts.{e}.{n}" for e in (0, 1, 10) for n in ("gate_proj", "up_proj", "down_proj")),
    *(f"mlp.shared_expert.{n}" for n in ("gate_proj", "up_proj", "down_proj")),
    "mlp.gate",
)


def block(settings: dict[str, Grid | None]) -> dict[str, Any]:
    return {"bits": 4, "group_size": 128, "sym": True, "dynamic": rules(DEFAULT, settings)}


def setting(found: dict[str, Any]) -> Grid:
    return Grid(found["bits"], found["group_size"], found["sym"])


@pytest.mark.parametrize("seed", range(20))
def test_every_linear_has_its_setting_again(seed: int) -> None:
    random = Random(seed)
    grids = [Grid(bits, size, symmetric) for bits in BITS for size in (*GROUP_SIZES, ROW) for symmetric in (True, False)]
    some = [DEFAULT, *random.sample([*grids, None], random.randint(1, 2))]
    settings = {f"model.layers.{i}.{name}": random.choice(some) for i in range(random.randint(1, 12)) for name in NAMES}
    settings["lm_head"] = random.choice(some)
    for i in range(12):  # whole lists of experts, too
        if random.random() < 0.5:
            one = random.choice(some)
            settings |= {n: one for n in settings if n.startswith(f"model.layers.{i}.mlp.experts.")}
    written = block(settings)
    for name, grid in settings.items():
        skipped = [k for k in written["dynamic"] if k.startswith("-:") and re.match(k[2:], name)]
        assert bool(skipped) == (grid is None)
        if grid is not None:
            assert setting(of_linear(written, name)) == grid


def test_what_vllm_joins_is_said_by_its_name_too() -> None:
    """It asks for `qkv_proj` and for a list of experts, not for their parts (its gptq_utils.get_dynamic_override)."""
    narrow = Grid(3, 64, False)
    settings: dict[str, Grid | None] = {}
    for i in range(3):
        settings |= {f"model.layers.{i}.{name}": narrow if i == 1 else DEFAULT for name in NAMES}
    settings["model.layers.2.self_attn.k_proj"] = narrow  # joined with two that are not: nothing can be said of all three
    written = block(settings)
    joined = ["self_attn.qkv_proj", "mlp.shared_expert.gate_up_proj", "mlp.experts"]
    assert all(setting(of_linear(written, f"model.layers.1.{name}")) == narrow for name in joined)
    assert all(setting(of_linear(written, f"model.layers.{i}.{name}")) == DEFAULT for i in (0, 2) for name in joined)
    assert {name.rpartition(".")[2] for name in joined[:2]} == set(JOINED.values())


def test_rules_are_few_where_layers_are_alike() -> None:
    settings = {f"model.layers.{i}.mlp.{n}": Grid(8, 64, True) for i in range(48) for n in ("down_proj", "o_proj")}
    assert list(rules(DEFAULT, settings)) == [r"+:^model\.layers\.\d+\.mlp\.down_proj$", r"+:^model\.layers\.\d+\.mlp\.o_proj$"]
    experts = {f"model.layers.7.mlp.experts.{e}.up_proj": Grid(8, 64, True) for e in range(128)}
    assert list(rules(DEFAULT, experts)) == [r"+:^model\.layers\.7\.mlp\.experts(?:\.|$)"]
    assert rules(DEFAULT, {"model.layers.0.mlp.up_proj": DEFAULT}) == {}
    assert rules(DEFAULT, {"model.layers.0.mlp.up_proj": None}) == {r"-:^model\.layers\.0\.mlp\.up_proj$": {}}
