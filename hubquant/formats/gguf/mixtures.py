"""Which ggml type each tensor of a mixture gets: llama.cpp's own choices (llama_tensor_get_type in src/llama-quant.cpp)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hubquant.errors import BadModel
from hubquant.formats.gguf.filetypes import MIXTURES, Mixture, mixture
from hubquant.quantize.ggml import GGML_TYPES, NEEDS_IMPORTANCE, fallback

__all__ = ["MIXTURES", "Chosen", "Dimensions", "Mixture", "called_by", "is_quantized", "mixture", "tensor_types", "uniform"]

_LAYER = re.compile(r"blk\.(\d+)\.")

# Parts of names of matrices that stay as they are: small ones on which much depends, positions, convolutions.
_KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight"),
    *("time_mix_first.weight", "time_mix_lerp_fused.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight"),
    *(f"time_mix_{part}.weight" for part in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
    *("a.rvq.codebook", "mm.a.code_embd"),
)
_KEPT_WHOLE = ("position_embd.weight", "token_types.weight")

# The categories of the rules, by the part of a name that tells; the first that fits.
_CATEGORIES = {
    "attn_qkv.weight": "attn_v",
    "attn_kv_b.weight": "attn_v",
    "attn_v.weight": "attn_v",
    "attn_k.weight": "attn_k",
    "attn_q.weight": "attn_q",
    "attn_output.weight": "attn_output",
    "ffn_up": "ffn_up",
    "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
}

# mixtures of about two bits and less have rules of their own; their type for what matters more
_LOW = {**dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"), "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}
_EMBEDDING = {**_LOW, "IQ3_XXS": "IQ3_S", "TQ1_0": "Q4_K", "TQ2_0": "Q4_K"}
_ATTN_OUTPUT = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
_ATTN_OUTPUT_8_EXPERTS = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"),
)


@dataclass(frozen=True)
class Dimensions:
    """What the rules ask of a model. `n_expert` is 0 where there are no experts."""

    architecture: str
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int = 0

    @property
    def is_70b(self) -> bool:
        """llama.cpp's LLM_TYPE_70B, which it recognises by the number of layers."""
        if self.architecture == "llama":
            return self.n_layer == 80 and self.n_head != self.n_head_kv and self.n_expert != 8
        return self.n_layer == {"qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}.get(self.architecture, 0)

    @property
    def shares_heads(self) -> bool:
        """Four query heads or more read one key and value head."""
        return self.n_head_kv > 0 and self.n_head // self.n_head_kv >= 4


@dataclass(frozen=True)
class Chosen:
    """Types that are no mixture of llama.cpp's: of the shapes of all tensors, and the mixture whose file type the file bears."""

    types: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, str]]
    called: Mixture


def uniform(kind: str) -> Chosen:
    """One type for every matrix that a mixture may change; embeddings and head, whose importance the pass does not take, in the
    nearest that does without."""
    outside = {"IQ3_XXS": "IQ3_S"}.get(kind, "Q2_K") if kind in NEEDS_IMPORTANCE else kind

    def types(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        wanted = {name: kind if name.startswith("blk.") else outside for name in shapes}
        return {n: fallback(wanted[n], shape[-1]) if is_quantized(n, shape) else "F32" for n, shape in shapes.items()}

    return Chosen(types, called_by(kind))


def called_by(kind: str) -> Mixture:
    """The mixture for a file whose most common type is `kind`: the middle one of those that begin with it."""
    names = [name for name, known in MIXTURES.items() if known.base == kind]
    return MIXTURES[f"{kind}_M" if f"{kind}_M" in names else names[0]]


def is_quantized(tensor: str, shape: tuple[int, ...]) -> bool:
    """Whether a mixture changes the type of a tensor at all (tensor_allows_quantization)."""
    whole = len(shape) > 1 and tensor.endswith("weight") and tensor not in _KEPT_WHOLE
    return whole and not any(part in tensor for part in _KEPT)


def tensor_types(name: str, shapes: Mapping[str, tuple[int, ...]], dimensions: Dimensions, has_imatrix: bool) -> dict[str, str]:
    """GGUF tensor name → ggml type, for the mixture `name` and the shapes [out, in] or [experts, out, in] of all tensors of the
    file. What no mixture changes is F32, as llama.cpp's converter writes it.

    Raises BadModel where llama.cpp would not write the file without an importance matrix.
    """
    rules = _Rules(name, dimensions, has_imatrix, shapes)
    types = {}
    # the rules count matrices in llama.cpp's order, by layer and then by name
    for tensor in sorted(shapes, key=lambda t: (_layer(t), t)):
        shape = shapes[tensor]
        if not is_quantized(tensor, shape):
            types[tensor] = "F32"
            continue
        types[tensor] = fallback(rules.choose(tensor, shape), shape[-1])
        if not has_imatrix and _needs_imatrix(name, tensor, types[tensor]):
            raise BadModel(f"{name} stores {tensor} as {types[tensor]}, which llama.cpp writes with an importance matrix only")
    return {tensor: types[tensor] for tensor in shapes}


def _needs_imatrix(name: str, tensor: str, kind: str) -> bool:
    if tensor in ("output.weight", "token_embd.weight", "per_layer_token_embd.weight"):
        return False
    return kind in NEEDS_IMPORTANCE or (name, kind) == ("Q2_K_S", "Q2_K")


def _layer(tensor: str) -> int:
    found = _LAYER.match(tensor)
    return int(found[1]) if found else -1


def _deserves_more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of n, and every third in between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


class _Rules:
    """The choice for one tensor after the other. `i` is the place of a matrix among those of its category."""

    def __init__(self, name: str, dimensions: Dimensions, has_imatrix: bool, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.name, self.base, self.model, self.has_imatrix = name, mixture(name).base, dimensions, has_imatrix
        self.tied = "output.weight" not in shapes
        self.n_attn_v = sum(_category(tensor) == "attn_v" for tensor in shapes)
        self.seen: dict[str, int] = {}

    def choose(self, tensor: str, shape: tuple[int, ...]) -> str:
        if self.base in ("F32", "F16", "BF16"):
            return self.base
        category = _category(tensor)
        if category == "output" or (self.tied and category == "token_embd"):
            return self._output(shape[-1])
        if self.name == "MXFP4_MOE":
            return "MXFP4" if len(shape) > 2 and shape[0] > 1 else "Q8_0"
        if category == "token_embd":
            return _EMBEDDING.get(self.name, self.base)
        i = self.seen[category] = self.seen.get(category, -1) + 1
        if self.name in _LOW:
            return self._low(category, i)
        if self.model.n_expert > 1 and category.startswith("ffn"):
            i = _layer(tensor)
        rule = getattr(self, f"_{category}", None)
        return self.base if rule is None else rule(i)

    def _output(self, n: int) -> str:
        if self.name == "MXFP4_MOE" or self.model.architecture == "falcon" or n % GGML_TYPES[self.base].block_size:
            return "Q8_0"
        if self.name in _LOW or self.name == "IQ3_XXS":
            return "Q5_K"
        return "Q8_0" if self.base == "Q8_0" else "Q6_K"

    def _low(self, category: str, i: int) -> str:
        more, model = _LOW[self.name], self.model
        if category == "attn_v":
            return "Q4_K" if model.shares_heads or model.n_expert >= 4 else more
        if category == "attn_k" and model.n_expert == 8:
            return "Q4_K"
        if category == "ffn_down" and i < model.n_layer // 8:
            return more
        if category == "attn_output":
            if model.n_expert == 8:
                return "Q5_K"
            return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(self.name, self.base)
        return self.base

    def _attn_v(self, i: int) -> str:
        if self.model.n_expert == 8:
            return "Q8_0"
        chosen = self._attn_v_of_any_size(i)
        # In the 70B models eight heads share attn_v: it is small there, and worth more bits.
        return "Q5_K" if self.model.is_70b and chosen in ("Q3_K", "Q4_K") else chosen

    def _attn_v_of_any_size(self, i: int) -> str:
        shares = self.model.shares_heads
        match self.name:
            case "Q2_K":
                return "Q4_K" if shares else "Q3_K"
            case "IQ3_XXS":
                return "Q4_K" if shares else "IQ3_XXS" if self.has_imatrix else "IQ3_S"
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if shares:
                return "Q4_K"
            case "IQ3_M":
                return "Q4_K"
            case "Q3_K_M":
                return "Q5_K" if i < 2 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if shares:
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _deserves_more_bits(i, self.n_attn_v):
                return "Q6_K"
            case "Q4_K_S" if i < 4:
                return "Q5_K"
        return self.base

    def _attn_k(self, i: int) -> str:
        return "Q8_0" if self.model.n_expert == 8 else self._attn_q(i)

    def _attn_q(self, i: int) -> str:
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.name, self.base)

    def _attn_output(self, i: int) -> str:
        if self.model.architecture == "falcon":
            return "Q4_K" if self.name == "Q3_K_L" else self.base
        if self.model.n_expert == 8:
            return "Q5_K" if self.name in _ATTN_OUTPUT_8_EXPERTS else self.base
        return _ATTN_OUTPUT.get(self.name, self.base)

    def _ffn_down(self, i: int) -> str:
        n, falcon = self.model.n_layer, self.model.architecture == "falcon"
        early, deserving = i < n // 8, _deserves_more_bits(i, n)
        match self.name:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S" if early:
                return "Q4_K"
            case "IQ3_XXS" if not self.has_imatrix:
                return "Q4_K" if early else "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if i < n // 16 else "Q4_K" if not falcon or deserving else "Q3_K"
            case "IQ3_M" if early or (self.model.n_expert == 8 and deserving):
                return "Q4_K"
            case "Q3_K_L":
                return "Q4_K" if falcon else "Q5_K"
            case "Q4_K_M" if falcon:
                return "Q6_K" if i < n // 16 else "Q5_K" if deserving else "Q4_K"
            case "Q4_K_M" | "Q5_K_M" if deserving:
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if early and not self.has_imatrix:
                return "Q5_K"
            case "Q4_K_S" if early and not falcon:
                return "Q5_K"
            case "Q4_0" | "Q5_0" if early and self.has_imatrix:
                return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[self.name]
        return self.base

    def _ffn_up(self, i: int) -> str:
        n = self.model.n_layer
        return "IQ3_XXS" if self.name == "IQ3_XS" and n // 8 <= i < 7 * n // 8 else self.base

    def _ffn_gate(self, i: int) -> str:
        return self._ffn_up(i)


def _category(tensor: str) -> str:
    if tensor in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    if tensor == "output.weight":
        return "output"
    return next((category for part, category in _CATEGORIES.items() if part in tensor), "other")
