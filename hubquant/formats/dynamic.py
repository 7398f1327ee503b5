"""GPTQModel's `dynamic`: which modules deviate from the settings of a GPTQ model, by patterns of their names.

{"+:regex": {"bits": 8, …}} overrides settings, {"-:regex": {}} leaves a module dense; the first that matches from the start of
the name holds. vLLM joins some linears to one and asks by the name of that one, so where all of them deviate alike its name is
said too.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hubquant.quantize.grid import Grid

SKIP, APPLY = "-:", "+:"
OVERRIDES = ("bits", "group_size", "sym", "desc_act")
JOINED = {("q_proj", "k_proj", "v_proj"): "qkv_proj", ("gate_proj", "up_proj"): "gate_up_proj"}  # as vLLM calls them
_EXPERT = re.compile(r"(.*\.experts)\.\d+\.")
_NUMBER = re.compile(r"\d+")


def of_linear(block: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of linear `name`: the block's, or what the first pattern of its `dynamic` makes of them."""
    for pattern, override in (block.get("dynamic") or {}).items():
        if re.match(pattern_of(pattern), name):
            return dict(block) if pattern.startswith(SKIP) else {**block, **known(override)}
    return dict(block)


def pattern_of(key: str) -> str:
    return key.removeprefix(SKIP).removeprefix(APPLY)


def known(override: Mapping[str, Any]) -> dict[str, Any]:
    return {k: override[k] for k in OVERRIDES if k in override}


def rules(default: Grid, settings: Mapping[str, Grid | None]) -> dict[str, dict[str, Any]]:
    """`dynamic` for linears by their published names; None stands for one that is left dense."""
    joined = _joined(settings)
    whole = {name: grids[0] for name, grids in joined.items() if len(set(grids)) == 1}
    every = {template: len(numbers) for template, numbers in _templates([*settings, *joined]).items()}
    by_setting: dict[Grid | None, list[str]] = {}
    for name, grid in {**settings, **whole}.items():
        if grid != default and list_of_experts(name) not in whole:  # the rule of the list is one for its experts too
            by_setting.setdefault(grid, []).append(name)
    found: dict[str, dict[str, Any]] = {}
    for grid, names in sorted(by_setting.items(), key=lambda item: (item[0] is not None, str(item[0]))):
        for template, numbers in _templates(names).items():
            pattern = _pattern(template, numbers, len(numbers) == every[template])
            found[SKIP + pattern if grid is None else APPLY + pattern] = {} if grid is None else override(grid)
    return found


def list_of_experts(name: str) -> str:
    """The name of the list of experts that a linear is in, "" if it is in none."""
    found = _EXPERT.match(name)
    return found[1] if found else ""


def override(grid: Grid) -> dict[str, Any]:
    return {"bits": grid.bits, "group_size": grid.group_size, "sym": grid.symmetric}


def _joined(settings: Mapping[str, Grid | None]) -> dict[str, list[Grid | None]]:
    """The settings of the parts of what vLLM joins: some linears, and lists of experts."""
    parts: dict[str, list[Grid | None]] = {}
    for name, grid in settings.items():
        if experts := list_of_experts(name):
            parts.setdefault(experts, []).append(grid)
            continue
        owner, _, linear = name.rpartition(".")
        for members, joined in JOINED.items():
            if linear == members[0] and all(f"{owner}.{member}" in settings for member in members):
                parts[f"{owner}.{joined}"] = [settings[f"{owner}.{member}"] for member in members]
    return parts


def _templates(names: Iterable[str]) -> dict[str, list[str]]:
    """Names without their first number (that of the layer), and the numbers of each."""
    found: dict[str, list[str]] = {}
    for name in names:
        number = _NUMBER.search(name)
        template = name if number is None else f"{name[: number.start()]}\0{name[number.end() :]}"
        found.setdefault(template, []).append("" if number is None else number[0])
    return found


def _pattern(template: str, numbers: list[str], all_of_them: bool) -> str:
    before, _, after = template.partition("\0")
    some = numbers[0] if len(numbers) == 1 else r"\d+" if all_of_them else f"(?:{'|'.join(numbers)})"
    end = r"(?:\.|$)" if template.endswith(".experts") else "$"
    return f"^{re.escape(before)}{some}{re.escape(after)}{end}"
