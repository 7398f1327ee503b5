"""GPTQ on disk: X.qweight [in·bits/32, out] int32, X.qzeros [n_groups, out·bits/32] int32, X.scales [n_groups, out] float16,
X.g_idx [in] int32. Version 1 (`checkpoint_format: gptq`) stores zero − 1; version 2 (`gptq_v2`) stores the zero itself."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from hubquant_kernels.int4_matmul import dequantize_gptq
from hubquant_kernels.layers import ONES, carried
from hubquant_kernels.pack import BITS, pack_words
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.quantize.grid import Grid, QuantizedWeight

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}


def version_for(grids: Iterable[Grid]) -> str:
    """Version 1, which everything reads, where all grids are symmetric. A zero of 0 has no place in it: readers wrap around, carry
    or do neither. So where zeros are free it is version 2."""
    return "gptq" if all(grid.symmetric for grid in grids) else "gptq_v2"


def pack(weight: QuantizedWeight, version: str = "gptq") -> dict[str, Tensor]:
    """The four tensors of one linear by suffix."""
    bits = weight.grid.bits
    stored_zeros = (weight.zeros.to(torch.int16) - ZERO_OFFSET[version]) % 2**bits
    return {
        "qweight": pack_words(weight.codes, bits).T.contiguous(),
        "qzeros": pack_words(stored_zeros.to(torch.uint8).T.contiguous(), bits),
        "scales": weight.scales.T.contiguous(),
        "g_idx": weight.group_index,
    }


def dequantize(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Dense weight [out, in] float32 of one linear from its tensors by suffix and the model's quantization_config."""
    qweight, qzeros, scales, g_idx = (tensors[s] for s in SUFFIXES)
    bits, offset = width(config), zero_offset(config)
    if carries(config):
        qzeros, offset = carried(qzeros, bits), 0
    return dequantize_gptq(qweight, qzeros, scales, g_idx, bits=bits, zero_offset=offset)


def check(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Raises BadModel, naming the tensor, if the four tensors of linear `name` do not fit each other."""
    bits, channels = width(config), tensors["g_idx"].numel()
    n_groups, outputs = tensors["scales"].shape
    words = {"qweight": [channels * bits / 32, outputs], "qzeros": [n_groups, outputs * bits / 32]}
    for suffix, shape in words.items():
        if list(tensors[suffix].shape) != shape:
            raise BadModel(
                f"tensor {name}.{suffix} has shape {list(tensors[suffix].shape)}, which does not fit {channels} channels, "
                f"{outputs} outputs and {n_groups} groups of {bits} bits"
            )
    group = tensors["g_idx"]
    if group.numel() and not 0 <= int(group.min()) <= int(group.max()) < n_groups:
        raise BadModel(f"tensor {name}.g_idx names groups {int(group.min())} to {int(group.max())}; there are {n_groups}")


def quantization_config(
    grid: Grid,
    dynamic: Mapping[str, Any],
    damp_ratio: float,
    producer: str,
    *,
    version: str = "gptq",
    desc_act: bool = False,
    lm_head: bool = False,
) -> dict[str, Any]:
    """The block of config.json that transformers, vLLM and SGLang read. `dynamic`: what deviates from `grid`."""
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group_size,
        "sym": grid.symmetric,
        "desc_act": desc_act,
        "checkpoint_format": version,
        "pack_dtype": "int32",
        "lm_head": lm_head,
        "damp_percent": damp_ratio,
        "true_sequential": False,
        "meta": {"quantizer": [producer]},
    }
    return config | ({"dynamic": dict(dynamic)} if dynamic else {})


def width(config: Mapping[str, Any]) -> int:
    """Bits per weight. Raises BadModel for a width that hubquant does not read."""
    if config.get("bits") not in BITS:
        raise BadModel(f"quantization_config.bits is {config.get('bits')!r}; hubquant reads {', '.join(map(str, BITS))} bits")
    return int(config["bits"])


def zero_offset(config: Mapping[str, Any]) -> int:
    """What a stored zero lacks, by `checkpoint_format` (GPTQModel also writes `format`). Raises BadModel for an unknown one."""
    name = config.get("checkpoint_format") or config.get("format") or "gptq"
    if name not in ZERO_OFFSET:
        raise BadModel(f"quantization_config.checkpoint_format is {name!r}; known: {', '.join(ZERO_OFFSET)}")
    return ZERO_OFFSET[name]


def check_config(config: Mapping[str, Any]) -> None:
    """Raises BadModel for a width or a version that hubquant does not read."""
    width(config)
    zero_offset(config)


def carries(config: Mapping[str, Any]) -> bool:
    """Whether zeros of version 1 were made by GPTQModel's subtraction of words (GptqCarryLinear). Symmetric ones never borrow."""
    quantizer = (config.get("meta") or {}).get("quantizer") or []
    names = [quantizer] if isinstance(quantizer, str) else quantizer
    by_gptqmodel = any(str(n).lower().startswith("gptqmodel") for n in names)
    return by_gptqmodel and zero_offset(config) == 1 and not config.get("sym", True) and config["bits"] in ONES
