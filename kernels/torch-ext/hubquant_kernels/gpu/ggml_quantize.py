"""Weights to the bytes of ggml's block types on a GPU: mode "best" by one kernel, mode "reference" by the definition.

The bytes of "reference" are ggml's, whose sums run in an order of their own. Those of "best" have about the error of the
definition's: both search for the least Σ importance·error² in the same way; see kquant.py.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from .. import kquant as affine_kinds
from .. import kquant_symmetric as symmetric_kinds
from .. import legacy as block_kinds
from ..ggml_best_symmetric import SymmetricKind
from ..ggml_quantize import ggml_quantize as operator
from ..ggml_range import check_values, largest_magnitude
from ..ggml_types import GGML_TYPES
from . import kquant, legacy
from .compilation import TARGETS, Compilation

MOST_PER_WEIGHT = 25.0  # instructions of a warp, for the whole search
COLUMNS = 128  # sub-blocks per program: one per thread
NUM_WARPS, NUM_WAVES = COLUMNS // 32, COLUMNS // 64
# types, and whether with importance
SHIPPED = (
    ("Q4_0", False),
    ("Q4_1", True),
    ("Q2_K", True),
    ("Q3_K", True),
    ("Q4_K", False),
    ("Q4_K", True),
    ("Q5_K", True),
    ("Q6_K", True),
    ("IQ4_XS", True),
)


def _trials(kind: SymmetricKind) -> dict[str, Any]:
    """The inverse scales to try as two arithmetic series (one, for types whose codes are as many on both sides)."""
    sides = 1 if kind.peaks[-1] < 0 else 2
    count = len(kind.peaks) // sides
    ends = {"LOW": float(kind.low), "HIGH": float(kind.high), "CODEBOOK": kind.codebook}
    first, step = kind.peaks[0], kind.peaks[1] - kind.peaks[0]
    return ends | {"COUNT": count, "SIDES": sides, "FIRST": first, "SECOND": kind.peaks[-1] + (count - 1) * step, "STEP": step}


def _k(affine: affine_kinds.Affine) -> tuple[Any, dict[str, Any]]:
    kind = affine.kind
    constants = {"SIZE": affine.size, "LEVELS": float(kind.levels), "TOP": float(kind.top), "S": COLUMNS * affine.size // 256}
    return kquant.encode_affine, constants


def _symmetric_k(kind: SymmetricKind, size: int) -> tuple[Any, dict[str, Any]]:
    scales = {"SC_LOW": float(kind.sc_low), "SC_HIGH": float(kind.sc_high), "SIZE": size, "S": COLUMNS * size // 256}
    return kquant.encode_symmetric, _trials(kind) | scales


def _block(kind: SymmetricKind) -> tuple[Any, dict[str, Any]]:
    return legacy.encode_symmetric, _trials(kind) | {"N": COLUMNS}


# by type: the kernel and the constants that make it the type's
KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Q4_0": _block(block_kinds.Q4_0),
    "Q5_0": _block(block_kinds.Q5_0),
    "Q8_0": _block(block_kinds.Q8_0),
    "IQ4_NL": _block(block_kinds.IQ4_NL),
    "Q4_1": (legacy.encode_affine, {"LEVELS": 15.0, "N": COLUMNS}),
    "Q5_1": (legacy.encode_affine, {"LEVELS": 31.0, "N": COLUMNS}),
    "Q2_K": _k(affine_kinds.Q2_K),
    "Q4_K": _k(affine_kinds.Q4_K),
    "Q5_K": _k(affine_kinds.Q5_K),
    "Q3_K": _symmetric_k(symmetric_kinds.Q3_K, 16),
    "Q6_K": _symmetric_k(symmetric_kinds.Q6_K, 16),
    "IQ4_XS": _symmetric_k(symmetric_kinds.IQ4_XS, 32),
}


def _constants(type_name: str, weighted: bool) -> dict[str, Any]:
    return {"WEIGHTED": weighted, "TYPE": type_name, "BYTES": GGML_TYPES[type_name].type_size} | KERNELS[type_name][1]


def ggml_quantize(weight: Tensor, importance: Tensor | None, type_name: str, mode: str) -> Tensor:
    """Weights [out, in], importance [in] → uint8 [out, row_bytes]; other modes than "best" and other types by the definition."""
    if mode != "best" or type_name not in KERNELS:
        return operator._init_fn(weight, importance, type_name, mode)
    kind, (kernel, constants) = GGML_TYPES[type_name], KERNELS[type_name]
    blocks_per_row, rest = divmod(weight.shape[1], kind.block_size)
    if rest or (importance is not None and importance.shape != weight.shape[1:]):
        given = "" if importance is None else f" with importance {tuple(importance.shape)}"
        raise ValueError(f"{type_name} takes rows of whole blocks of {kind.block_size}, not {tuple(weight.shape)}{given}")
    check_values(weight, type_name, largest_magnitude(weight))
    n_blocks, size = len(weight) * blocks_per_row, constants.get("SIZE", kind.block_size)
    data = torch.empty(len(weight), blocks_per_row * kind.type_size, dtype=torch.uint8, device=weight.device)
    if n_blocks:
        x = weight.detach().contiguous()
        kernel[(triton.cdiv(n_blocks, COLUMNS * size // kind.block_size),)](
            x,
            x if importance is None else importance.detach().float().contiguous(),
            data,
            data.view(torch.int16),
            n_blocks,
            weight.shape[1] // size,
            **_constants(type_name, importance is not None),
            num_warps=NUM_WAVES if torch.version.hip else NUM_WARPS,
            num_stages=2,
            enable_fp_fusion=True,
        )
    return data


def _compilation(type_name: str, weighted: bool, wave: bool) -> Compilation:
    kind = GGML_TYPES[type_name]
    pointers = {"x": "*fp32", "importance": "*fp32", "data": "*u8", "halves": "*i16"}
    return Compilation(
        name=f"ggml_quantize/{type_name.lower()}{'-importance' * weighted}{'-wave64' * wave}",
        kernel=KERNELS[type_name][0],
        signature=pointers | {"n_blocks": "i32", "per_row": "i32"},
        constants=_constants(type_name, weighted),
        aligned=tuple(pointers),
        num_warps=NUM_WAVES if wave else NUM_WARPS,
        weights=COLUMNS * KERNELS[type_name][1].get("SIZE", kind.block_size),
        most_per_weight=MOST_PER_WEIGHT,
        targets=tuple(target for target in TARGETS if target.startswith("gfx") == wave),
    )


COMPILATIONS = tuple(_compilation(*shipped, wave) for wave in (False, True) for shipped in SHIPPED)
