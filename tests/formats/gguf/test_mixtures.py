"""What llama-quantize chose for published models; test_llamacpp_types asks llama.cpp itself."""

from collections import Counter
from math import prod

import gguf
import pytest

from hubquant.errors import BadModel, UsageError
from hubquant.formats.gguf.mixtures import MIXTURES, Dimensions, tensor_types
from hubquant.quantize.ggml import GGML_TYPES


def llama_shapes(n_layer: int, hidden: int, kv: int, ffn: int, vocab: int, tied: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (vocab, hidden)
    for i in range(n_layer):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (hidden,),
            f"blk.{i}.attn_q.weight": (hidden, hidden),
            f"blk.{i}.attn_k.weight": (kv, hidden),
            f"blk.{i}.attn_v.weight": (kv, hidden),
            f"blk.{i}.attn_output.weight": (hidden, hidden),
            f"blk.{i}.ffn_norm.weight": (hidden,),
            f"blk.{i}.ffn_gate.weight": (ffn, hidden),
            f"blk.{i}.ffn_up.weight": (ffn, hidden),
            f"blk.{i}.ffn_down.weight": (hidden, ffn),
        }
    return shapes


LLAMA_2_7B = llama_shapes(32, 4096, 4096, 11008, 32000, tied=False)
SMOLLM2_135M = llama_shapes(30, 576, 192, 1536, 49152, tied=True)


def matrices(types: dict[str, str]) -> Counter[str]:
    return Counter(kind for name, kind in types.items() if not name.endswith("norm.weight"))


def test_llama_2_7b_q4_k_m() -> None:
    """193 Q4_K and 33 Q6_K, as in every Q4_K_M file of it."""
    types = tensor_types("Q4_K_M", LLAMA_2_7B, Dimensions("llama", 32, 32, 32), has_imatrix=False)
    assert matrices(types) == {"Q4_K": 193, "Q6_K": 33}
    better = {i for i in range(32) if types[f"blk.{i}.ffn_down.weight"] == "Q6_K"}
    assert better == {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31}
    assert all(types[f"blk.{i}.attn_v.weight"] == types[f"blk.{i}.ffn_down.weight"] for i in range(32))
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == "Q4_K"


def test_smollm2_q4_k_m_falls_back() -> None:
    """Rows of 576 are no whole blocks of 256. Counted in a file that llama-quantize made of it."""
    types = tensor_types("Q4_K_M", SMOLLM2_135M, Dimensions("llama", 30, 9, 3), has_imatrix=True)
    assert matrices(types) == {"Q5_0": 166, "Q4_K": 16, "Q6_K": 14, "Q8_0": 15}
    assert types["token_embd.weight"] == "Q8_0"


def test_rows_that_fit_no_block_stay_in_16_bit() -> None:
    shapes = llama_shapes(2, 48, 48, 80, 100, tied=True)
    types = tensor_types("Q4_K_M", shapes, Dimensions("llama", 2, 2, 2), has_imatrix=False)
    assert matrices(types) == {"F16": 15}


def test_70b_gives_attn_v_more_bits() -> None:
    shapes = llama_shapes(80, 8192, 1024, 28672, 32000, tied=False)
    types = tensor_types("Q4_K_M", shapes, Dimensions("llama", 80, 64, 8), has_imatrix=False)
    assert types["blk.10.attn_v.weight"] == "Q5_K"
    types = tensor_types("Q4_K_M", shapes, Dimensions("llama", 80, 64, 64), has_imatrix=False)
    assert types["blk.10.attn_v.weight"] == "Q4_K"


def test_vectors_are_float32_in_every_mixture() -> None:
    for name in MIXTURES:
        types = tensor_types(name, LLAMA_2_7B, Dimensions("llama", 32, 32, 32), has_imatrix=True)
        assert {kind for tensor, kind in types.items() if tensor.endswith("norm.weight")} == {"F32"}


def test_file_types_are_llama_cpps_numbers() -> None:
    for name, mixture in MIXTURES.items():
        assert mixture.file_type == gguf.LlamaFileType[f"{'ALL' if name == 'F32' else 'MOSTLY'}_{name}"]


def test_unknown_mixture() -> None:
    with pytest.raises(UsageError, match=r"'Q4_K_XL'; known: .*Q4_K_M"):
        tensor_types("Q4_K_XL", LLAMA_2_7B, Dimensions("llama", 32, 32, 32), has_imatrix=False)


def test_mixtral_s_attention_is_kept_wide_and_its_router_whole() -> None:
    shapes = llama_shapes(32, 4096, 1024, 14336, 32000, tied=False)
    for i in range(32):
        del shapes[f"blk.{i}.ffn_gate.weight"], shapes[f"blk.{i}.ffn_up.weight"], shapes[f"blk.{i}.ffn_down.weight"]
        shapes[f"blk.{i}.ffn_gate_inp.weight"] = (8, 4096)
        shapes[f"blk.{i}.ffn_down_exps.weight"] = (8, 4096, 14336)
    types = tensor_types("Q4_K_M", shapes, Dimensions("llama", 32, 32, 8, n_expert=8), has_imatrix=True)
    assert {types[f"blk.{i}.attn_v.weight"] for i in range(32)} == {"Q8_0"}
    assert {types[f"blk.{i}.ffn_gate_inp.weight"] for i in range(32)} == {"F32"}
    assert types["blk.0.ffn_down_exps.weight"] == "Q6_K" and types["blk.4.ffn_down_exps.weight"] == "Q4_K"
    types = tensor_types("MXFP4_MOE", shapes, Dimensions("llama", 32, 32, 8, n_expert=8), has_imatrix=False)
    assert types["blk.4.ffn_down_exps.weight"] == "MXFP4" and types["blk.0.attn_q.weight"] == "Q8_0"


@pytest.mark.parametrize("name", ["IQ1_S", "IQ2_M", "IQ3_XXS", "Q2_K_S"])
def test_the_smallest_need_an_importance_matrix(name: str) -> None:
    with pytest.raises(BadModel, match=f"{name} .* importance matrix"):
        tensor_types(name, LLAMA_2_7B, Dimensions("llama", 32, 32, 32), has_imatrix=False)
    tensor_types(name, LLAMA_2_7B, Dimensions("llama", 32, 32, 32), has_imatrix=True)


def test_bits_per_weight_are_those_of_llama_3_1_8b() -> None:
    shapes = llama_shapes(32, 4096, 1024, 14336, 128256, tied=False)
    parameters = sum(prod(shape) for shape in shapes.values())
    for name, mixture in MIXTURES.items():
        types = tensor_types(name, shapes, Dimensions("llama", 32, 32, 8), has_imatrix=True)
        bits = sum(GGML_TYPES[types[t]].bits_per_weight * prod(shape) for t, shape in shapes.items()) / parameters
        if name != "MXFP4_MOE":  # which is for experts
            assert bits == pytest.approx(mixture.bits_per_weight, rel=0.02), name
