"""`quantization_config` of a GPTQ or AWQ checkpoint, as its author wrote it: checked before the model is built, saved unchanged."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers.utils.quantization_config import AwqConfig as StockAwqConfig
from transformers.utils.quantization_config import GPTQConfig as StockGptqConfig

from hubquant.errors import BadModel
from hubquant.formats import awq, gptq

SKIP, APPLY = "-:", "+:"  # before a pattern of GPTQModel's `dynamic`: leave the module dense, or override its settings
OVERRIDES = ("bits", "group_size", "sym", "desc_act")
PACK_DTYPE = "int32"


class _Block:
    """What the two have in common. `block` is config.json's, and what `to_dict` gives back."""

    block: dict[str, Any]
    check_format: Callable[[Mapping[str, Any]], None]

    def _read(self, block: dict[str, Any]) -> None:
        self.block = block
        _check(block)
        type(self).check_format(block)
        for pattern, override in (block.get("dynamic") or {}).items():
            _check_override(pattern, override)
            if isinstance(override, Mapping):
                _check(block | override)
                self.check_format(block | override)
        self.bits, self.group_size = block["bits"], block["group_size"]
        self.desc_act, self.sym = bool(block.get("desc_act")), block.get("sym")
        self.backend = self.max_input_length = None  # what a caller's own config may set when it is merged into this one

    def of_linear(self, name: str) -> dict[str, Any]:
        """The settings of linear `name` of the files: the first pattern of `dynamic` that matches overrides the block's."""
        for pattern, override in (self.block.get("dynamic") or {}).items():
            if re.match(pattern.removeprefix(SKIP).removeprefix(APPLY), name):
                return self.block if pattern.startswith(SKIP) else self.block | {k: override[k] for k in OVERRIDES if k in override}
        return self.block

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.block)


class GPTQConfig(_Block, StockGptqConfig):  # type: ignore[misc]
    """Named as transformers' own, which compares the names where a caller passes a config too."""

    check_format = staticmethod(gptq.check_config)

    def __init__(self, **block: Any) -> None:
        self.quant_method, self.dataset, self.tokenizer = "gptq", None, None
        self._read(block)


class AwqConfig(_Block, StockAwqConfig):  # type: ignore[misc]
    check_format = staticmethod(awq.check_config)

    def __init__(self, **block: Any) -> None:
        self.quant_method = "awq"
        self._read(block)


def _check(block: Mapping[str, Any]) -> None:
    for name in ("bits", "group_size"):
        if name not in block:
            raise BadModel(f"quantization_config.{name} is missing from config.json, which has {', '.join(sorted(block))}")
    size = block["group_size"]
    if not isinstance(size, int) or isinstance(size, bool) or (size != -1 and size <= 0):
        raise BadModel(f"quantization_config.group_size is {size!r}; it is a positive number, or -1 for one group of all channels")
    if (packed := block.get("pack_dtype", PACK_DTYPE)) != PACK_DTYPE:
        raise BadModel(f"quantization_config.pack_dtype is {packed!r}; hubquant reads {PACK_DTYPE}")
    if not isinstance(block.get("dynamic") or {}, Mapping):
        raise BadModel(f"quantization_config.dynamic is {block['dynamic']!r}; it names patterns of modules and their settings")


def _check_override(pattern: str, override: Any) -> None:
    try:
        re.compile(pattern.removeprefix(SKIP).removeprefix(APPLY))
    except re.error as error:
        raise BadModel(f"quantization_config.dynamic has pattern {pattern!r}, which is no regular expression: {error}") from None
    if not pattern.startswith(SKIP) and not isinstance(override, Mapping):
        raise BadModel(f"quantization_config.dynamic[{pattern!r}] is {override!r}; it is a table of settings")
