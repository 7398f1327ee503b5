"""One shipped configuration of a Triton kernel: how it is launched, and how it is compiled ahead of time without a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


@dataclass(frozen=True)
class Compilation:
    """Everything `triton.compile` asks for, and what the machine code is meant to look like.

    `name`: the operator and the configuration, "matmul_gptq/m16"; `kernel`: the jitted function; `signature`: type of every
    argument that is no constant ("*fp16", "i32"); `constants`: its tl.constexpr arguments; `aligned`: arguments divisible
    by 16 (pointers and strides), without which nothing is loaded 128 bits wide; `fp_fusion`: whether a·b + c may become one
    instruction (False where results must equal the definition's).
    `weights`: how many weights one program handles in one trip of its innermost loop (0: no per-weight figure is wanted);
    `most_per_weight`: where all trips are over the same weights, how many instructions of a warp the whole program may take
    for each (0: no such figure is wanted);
    `bytes_read`: what it reads from memory in that trip; `tensor_cores`, `wide_loads`: what the machine code must contain.
    `why_narrow`: a sentence for the report, where `wide_loads` is False. `targets`: where this configuration is used.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...]
    num_warps: int = 4
    num_stages: int = 2
    fp_fusion: bool = True
    weights: int = 0
    most_per_weight: float = 0.0
    bytes_read: float = 0.0
    tensor_cores: bool = False
    wide_loads: bool = True
    why_narrow: str = ""
    targets: tuple[str, ...] = TARGETS
