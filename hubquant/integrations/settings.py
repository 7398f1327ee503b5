"""`quantization_config` of a packed checkpoint, as its author wrote it: checked before the model is built, saved unchanged."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers.utils.quantization_config import AutoRoundConfig as StockAutoRoundConfig
from transformers.utils.quantization_config import AwqConfig as StockAwqConfig
from transformers.utils.quantization_config import GPTQConfig as StockGptqConfig

from hubquant.errors import BadModel
from hubquant.formats import awq, gptq
from hubquant.formats.dynamic import SKIP, known, of_linear, pattern_of

PACK_DTYPE = "int32"
# how auto-round names the layouts, in the words of the two formats
AUTO_ROUND: dict[str, dict[str, Any]] = {
    "auto_round:auto_gptq": {"quant_method": "gptq", "checkpoint_format": "gptq"},
    "auto_round:gptqmodel": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
    "auto_round": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
    "auto_round:auto_awq": {"quant_method": "awq", "version": "gemm"},
}


class _Block:
    """What they have in common. `block` is config.json's, and what `to_dict` gives back."""

    block: dict[str, Any]
    check_format: Callable[[Mapping[str, Any]], None]

    def _read(self, block: dict[str, Any]) -> None:
        self.block = block
        self._meant = self._meaning()
        self._check(self._meant)
        for pattern, override in (block.get("dynamic") or {}).items():
            _check_override(pattern, override)
            if isinstance(override, dict):
                self._check(self._meant | override)
        self.bits, self.group_size = block["bits"], block["group_size"]
        self.desc_act, self.sym = bool(block.get("desc_act")), block.get("sym")
        self.backend = self.max_input_length = None  # what a caller's own config may set when it is merged into this one

    def _meaning(self) -> dict[str, Any]:
        """The block in the words of its format."""
        return self.block

    def _check(self, settings: Mapping[str, Any]) -> None:
        _check(settings)
        type(self).check_format(settings)

    def of_linear(self, name: str) -> dict[str, Any]:
        """The settings of linear `name` of the files."""
        return of_linear(self._meant, name)

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


class AutoRoundConfig(_Block, StockAutoRoundConfig):  # type: ignore[misc]
    """auto-round's own method name around the same layouts; `extra_config` overrides settings by a linear's name or a pattern."""

    def __init__(self, **block: Any) -> None:
        self.quant_method = "auto-round"
        self._read(block)

    def _meaning(self) -> dict[str, Any]:
        packing = self.block.get("packing_format", "auto_round:auto_gptq")
        if packing not in AUTO_ROUND:
            raise BadModel(f"quantization_config.packing_format is {packing!r}; hubquant reads {', '.join(AUTO_ROUND)}")
        if self.block.get("data_type", "int") != "int" or self.block.get("act_bits", 16) not in (None, 16, 32):
            raise BadModel(
                f"quantization_config has data_type {self.block.get('data_type')!r} and act_bits {self.block.get('act_bits')!r}; "
                "hubquant reads weights in integers, with activations as they are"
            )
        return self.block | AUTO_ROUND[packing]

    @staticmethod
    def check_format(settings: Mapping[str, Any]) -> None:
        (awq if settings["quant_method"] == "awq" else gptq).check_config(settings)

    @property
    def packs_as_awq(self) -> bool:
        return bool(self._meant["quant_method"] == "awq")

    def of_linear(self, name: str) -> dict[str, Any]:
        for pattern, override in (self.block.get("extra_config") or {}).items():
            if pattern == name or re.fullmatch(pattern, name):
                return self._meant | known(override)
        return self._meant


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
        re.compile(pattern_of(pattern))
    except re.error as error:
        raise BadModel(f"quantization_config.dynamic has pattern {pattern!r}, which is no regular expression: {error}") from None
    if not pattern.startswith(SKIP) and not isinstance(override, dict):
        raise BadModel(f"quantization_config.dynamic[{pattern!r}] is {override!r}; it is a table of settings")
