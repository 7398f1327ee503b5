"""compressed-tensors, as llm-compressor writes it (format pack-quantized), decoded to dense weights: its bytes in our evaluator.

X.weight_packed [out, in·bits/32] int32, one stream of bits per row as in GPTQ; codes are value + 2^(bits−1).
X.weight_scale [out, n_groups]; X.weight_zero_point [out·bits/32, n_groups] int32, packed along the outputs likewise, or absent;
X.weight_g_idx [in] or absent; X.weight_shape [2].
"""

import json
from pathlib import Path
from typing import Any

import torch
from hubquant_kernels.pack import unpack_words
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.model.checkpoint import Checkpoint

PACKED = ".weight_packed"
PARTS = (PACKED, ".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_shape")


class CompressedSource:
    """A folder of compressed-tensors as a TensorSource. Raises BadModel for another format or a scheme with several widths."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
        groups = list(config.get("config_groups", {}).values())
        if config.get("quant_method") != "compressed-tensors" or len(groups) != 1:
            raise BadModel(f"{folder}: not a compressed-tensors folder with one scheme")
        if (found := groups[0].get("format") or config.get("format")) != "pack-quantized":
            raise BadModel(f"{folder}: compressed-tensors format {found!r}; known: pack-quantized")
        self.bits = int(groups[0]["weights"]["num_bits"])
        self._stored = _WithIntegers(folder)

    def names(self) -> list[str]:
        plain = [name for name in self._stored.names() if not name.endswith(PARTS)]
        return plain + [name.removesuffix(PACKED) + ".weight" for name in self._stored.names() if name.endswith(PACKED)]

    def tensor(self, name: str) -> Tensor:
        """float32 where packed, else as stored."""
        if name in self._stored:
            return self._stored.tensor(name)
        stem = name.removesuffix(".weight")
        parts = {part: self._stored.tensor(stem + part) for part in PARTS if stem + part in self._stored}
        return decode({part.removeprefix("."): tensor for part, tensor in parts.items()}, self.bits)

    def as_saved(self, name: str) -> bool:
        return name in self._stored

    def release(self) -> None:
        self._stored.release()


class _WithIntegers(Checkpoint):
    dtypes = (*Checkpoint.dtypes, "I32", "I64")


def decode(parts: dict[str, Any], bits: int) -> Tensor:
    """Dense weight [out, in] float32 of one linear from its tensors by name."""
    channels = int(parts["weight_shape"][1])
    codes, scales = signed(parts["weight_packed"], bits), parts["weight_scale"].float()
    in_order = torch.arange(channels) // (channels // scales.shape[1])
    group = parts.get("weight_g_idx", in_order).long()
    if "weight_zero_point" in parts:
        codes = codes - signed(parts["weight_zero_point"].T.contiguous(), bits).T[:, group]
    return codes * scales[:, group]


def signed(words: Tensor, bits: int) -> Tensor:
    """Codes [rows, n] float32 around zero from words [rows, n·bits/32] int32."""
    return unpack_words(words, bits).float() - 2 ** (bits - 1)
