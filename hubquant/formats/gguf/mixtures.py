"""Which ggml type each tensor of a mixture gets: llama.cpp's own choices (llama_tensor_get_type in src/llama-quant.cpp)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hubquant.errors import UsageError
from hubquant.quantize.ggml import fallback

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Mixture:
    """`file_type` is llama.cpp's number of it (llama_ftype), `base` the type of every matrix that no rule singles out."""

    file_type: int
    base: str


MIXTURES: dict[str, Mixture] = {
    "F32": Mixture(0, "F32"),
    "F16": Mixture(1, "F16"),
    "BF16": Mixture(32, "BF16"),
    "Q8_0": Mixture(7, "Q8_0"),
    "Q4_0": Mixture(2, "Q4_0"),
    "Q4_1": Mixture(3, "Q4_1"),
    "Q5_0": Mixture(8, "Q5_0"),
    "Q5_1": Mixture(9, "Q5_1"),
    "Q4_K_S": Mixture(14, "Q4_K"),
    "Q4_K_M": Mixture(15, "Q4_K"),
    "Q5_K_S": Mixture(16, "Q5_K"),
    "Q5_K_M": Mixture(17, "Q5_K"),
    "Q6_K": Mixture(18, "Q6_K"),
}


@dataclass(frozen=True)
class Dimensions:
    """What the rules ask of a model."""

    architecture: str
    n_layer: int
    n_head: int
    n_head_kv: int

    @property
    def is_70b(self) -> bool:
        """llama.cpp's LLM_TYPE_70B, which it recognises by 80 layers."""
        if self.architecture == "llama":
            return self.n_layer == 80 and self.n_head != self.n_head_kv
        return self.architecture == "qwen2" and self.n_layer == 80


def mixture(name: str) -> Mixture:
    """Raises UsageError naming the known ones."""
    try:
        return MIXTURES[name]
    except KeyError:
        raise UsageError(f"unknown GGUF mixture {name!r}; known: {', '.join(MIXTURES)}") from None


def tensor_types(name: str, shapes: Mapping[str, tuple[int, ...]], dimensions: Dimensions, has_imatrix: bool) -> dict[str, str]:
    """GGUF tensor name → ggml type, for the mixture `name` and the shapes [out, in] of all tensors of the file."""
    base = mixture(name).base
    tied = "output.weight" not in shapes
    attn_v = sorted((t for t in shapes if t.endswith("attn_v.weight")), key=_layer)
    types = {}
    for tensor, shape in shapes.items():
        if len(shape) < 2:  # norms and biases
            types[tensor] = "F32"
            continue
        chosen = base
        if base in ("F32", "F16", "BF16"):
            pass
        elif tensor == "output.weight" or (tied and tensor == "token_embd.weight"):
            fits = fallback(base, shape[1]) == base
            chosen = "Q6_K" if fits and base != "Q8_0" else "Q8_0"
        elif tensor in attn_v:
            chosen = _attn_v(name, base, attn_v.index(tensor), len(attn_v), dimensions)
        elif tensor.endswith("ffn_down.weight"):
            chosen = _ffn_down(name, base, _layer(tensor), dimensions.n_layer, has_imatrix)
        types[tensor] = fallback(chosen, shape[1])
    return types


def _layer(tensor: str) -> int:
    found = _LAYER.match(tensor)
    return int(found[1]) if found else -1


def _deserves_more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of n, and every third in between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _attn_v(name: str, base: str, i: int, n: int, dimensions: Dimensions) -> str:
    chosen = base
    if name in ("Q4_K_M", "Q5_K_M") and _deserves_more_bits(i, n):
        chosen = "Q6_K"
    elif name == "Q4_K_S" and i < 4:
        chosen = "Q5_K"
    # In the 70B models eight heads share attn_v: it is small there, and worth more bits.
    return "Q5_K" if dimensions.is_70b and chosen == "Q4_K" else chosen


def _ffn_down(name: str, base: str, i: int, n: int, has_imatrix: bool) -> str:
    if name in ("Q4_K_M", "Q5_K_M") and _deserves_more_bits(i, n):
        return "Q6_K"
    if name == "Q4_K_S" and i < n // 8:
        return "Q5_K"
    if name in ("Q4_0", "Q5_0") and has_imatrix and i < n // 8:
        return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[name]
    return base
