"""AWQ on disk (GEMM layout): X.qweight [in, out/8] int32 and X.qzeros [n_groups, out/8] int32, eight columns to a word in the
order 0 2 4 6 1 3 5 7, X.scales [n_groups, out] float16. Always 4 bits and asymmetric. Two older layouts are read, not written."""

from collections.abc import Iterable, Mapping
from typing import Any

from hubquant_kernels.awq_gemv import dequantize_awq_gemv, dequantize_awq_gemv_fast
from hubquant_kernels.int4_matmul import dequantize_awq
from hubquant_kernels.pack import pack_words, to_awq_order
from torch import Tensor

from hubquant.errors import BadModel
from hubquant.quantize.grid import Grid, QuantizedWeight

SUFFIXES = ("qweight", "qzeros", "scales")
BITS = 4
LAYOUT = "gemm"
OLDER = {"gemv": dequantize_awq_gemv, "gemv_fast": dequantize_awq_gemv_fast}


def pack(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The three tensors of one linear by suffix."""
    return {
        "qweight": pack_words(to_awq_order(weight.codes.T.contiguous()), BITS),
        "qzeros": pack_words(to_awq_order(weight.zeros.T.contiguous()), BITS),
        "scales": weight.scales.T.contiguous(),
    }


def dequantize(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Dense weight [out, in] float32 of one linear from its tensors by suffix and the model's quantization_config."""
    check_config(config)
    packed = [tensors[s] for s in SUFFIXES]
    decode = OLDER.get(layout(config))
    if decode is None:
        return dequantize_awq(*packed)
    channels = packed[0].shape[1] * (8 if layout(config) == "gemv" else 1)
    return decode(*packed, channels if config["group_size"] == -1 else config["group_size"])


def check(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Raises BadModel, naming the tensor, if the three tensors of linear `name` do not fit each other and the group size."""
    if layout(config) in OLDER:  # their padding is not worth a second account: the loader compares all shapes
        return
    channels = tensors["qweight"].shape[0]
    group_size = channels if config["group_size"] == -1 else config["group_size"]
    n_groups, outputs = tensors["scales"].shape
    if n_groups * group_size != channels:
        raise BadModel(f"tensor {name}.scales has {n_groups} groups of {group_size}; {name}.qweight has {channels} channels")
    for suffix in ("qweight", "qzeros"):
        rows = channels if suffix == "qweight" else n_groups
        if list(tensors[suffix].shape) != [rows, outputs * BITS / 32]:
            raise BadModel(
                f"tensor {name}.{suffix} has shape {list(tensors[suffix].shape)}, which does not fit {outputs} outputs and "
                f"{n_groups} groups"
            )


def check_config(config: Mapping[str, Any]) -> None:
    """Raises BadModel for a width or a layout of AWQ that hubquant does not read."""
    known = (LAYOUT, *OLDER)
    if config.get("bits") != BITS or layout(config) not in known:
        raise BadModel(
            f"AWQ with {config.get('bits')!r} bits in layout {layout(config)!r}; hubquant reads {BITS} bits in layouts "
            f"{', '.join(known)}"
        )


def layout(config: Mapping[str, Any]) -> str:
    """The name of the layout, which files give as `version` or as `format`."""
    return str(config.get("version") or config.get("format") or LAYOUT).lower()


def quantization_config(grid: Grid, kept: Iterable[str]) -> dict[str, Any]:
    """The block of config.json that transformers, vLLM and SGLang read. `kept`: linears left in 16 bit."""
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": grid.group_size,
        "zero_point": True,
        "version": LAYOUT,
        "modules_to_not_convert": ["lm_head", *kept],
    }
