"""What the weights of a GGUF block are linear in: the float16 scales of the whole block. W = Σ scales[k] · parts[k], where each
part is made of codes, sub-scales and codebooks alone."""

import torch
from torch import Tensor

from hubquant.quantize.ggml import GGML_TYPES, decode

# Where in a block they lie, in bytes: the scale, and of types with a minimum that one's. MXFP4's is a power of two, IQ1_M's is in
# pieces.
SCALES: dict[str, tuple[int, ...]] = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ1_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
    "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip

# Those whose parts, sub-scale times code, have more digits than float16
_WIDE = ("Q6_K", "IQ4_XS")


def part_bytes(type_name: str) -> int:
    """What the `smallest` parts take, in bytes per weight; 0 for a type without scales."""
    return len(SCALES.get(type_name, ())) * (4 if type_name in _WIDE else 2)


def scales_of(data: Tensor, type_name: str) -> Tensor:
    """uint8 [rows, row_bytes] of a type of SCALES → float32 [k, rows, blocks]."""
    blocks = _blocks(data, type_name)
    return torch.stack([blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0].float() for at in SCALES[type_name]])


def with_scales(data: Tensor, type_name: str, scales: Tensor) -> Tensor:
    """The same blocks with other scales [k, rows, blocks], rounded to float16."""
    blocks = _blocks(data, type_name).clone()
    for at, values in zip(SCALES[type_name], scales, strict=True):
        blocks[..., at : at + 2] = values.half().unsqueeze(-1).view(torch.uint8)
    return blocks.view_as(data)


def parts_of(data: Tensor, type_name: str) -> Tensor:
    """float32 [k, rows, in]: each with its scale 1 and the others 0."""
    scales = torch.eye(len(SCALES[type_name]))[:, :, None, None].expand(-1, -1, *_blocks(data, type_name).shape[:2])
    return torch.stack([decode(with_scales(data, type_name, own), type_name) for own in scales])


def smallest(values: Tensor) -> Tensor:
    """In float16 where that holds every value as it is."""
    half = values.half()
    return half if torch.equal(half.float(), values.float()) else values


def _blocks(data: Tensor, type_name: str) -> Tensor:
    return data.view(len(data), -1, GGML_TYPES[type_name].type_size)
