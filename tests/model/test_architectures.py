"""Every causal language model of transformers whose config can be made tiny: run layer by layer, folded, packed, loaded.

`make test-architectures`; with HUBQUANT_KEEP_ARCHITECTURES=1 the README's table is kept, row by row where only some are run. A
model type that stands in no table below must pass.
"""

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

from hubquant.bookmark import Bookmark
from hubquant.errors import BadModel
from hubquant.formats.gguf.families import FAMILIES
from hubquant.formats.packed import PackedWriter
from hubquant.formats.packedsource import PackedSource
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder
from hubquant.model.layer import Layer
from hubquant.model.topology import find_inputs
from hubquant.onepass import observe, one_pass
from hubquant.recipe import variant

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "architectures" / "transformers.json"
LARGEST = 5_000_000  # parameters of what counts as tiny
VARIANTS = ("gptq-int4-g128", "awq-int4-g128")

# What any config has of these is made small. Layers: three, so that patterns of layers show.
SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "word_embed_proj_dim", "emb_dim", "embedding_size"), 64
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 128),
    **dict.fromkeys(("d_ff", "dim_ff", "dff", "intermediate_size_mlp"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "dim_head", "d_kv"), 16),
    **dict.fromkeys(("vocab_size",), 128),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace",), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("sliding_window",), 64),
    **dict.fromkeys(("attention_window_size", "mamba_d_head", "mamba_head_dim"), 32),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("mamba_expand", "linear_num_key_heads"), 2),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
MAY_BE_UNSET = ("pad_token_id", "bos_token_id", "eos_token_id")

# Sizes that must fit each other in a way of the model's own.
_LATENT: dict[str, Any] = {"num_key_value_heads": 4}
_HEADS: dict[str, Any] = {"head_dim": 16}
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
_PER_LAYER: dict[str, Any] = {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 16}
_IDS: dict[str, Any] = {"image_token_id": 120, "video_token_id": 121, "audio_token_id": 122}
_NOTE: dict[str, Any] = {**_LATENT, "head_dim": 32, "index_head_dim": 16, "index_n_heads": 4, "per_layer_config": {}}
_GLOBAL: dict[str, Any] = {"hidden_size_global": 64}
_ADAPTER: dict[str, Any] = {"adapter_in_dim": 64, "adapter_input_size": 64, "adapter_out_dim": 64}
_SHARED_BLOCK: dict[str, Any] = {"attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu"), _LATENT),
    "kimi_linear": {**_LATENT, "linear_head_dim": 16, "linear_num_heads": 4},
    "longcat_flash": {**_LATENT, "expert_ffn_hidden_size": 64, "zero_expert_num": 2},
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16, "partial_rotary_factor": 0.5},
    "dots1": {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "zaya": {"num_experts_per_tok": 1},
    "blt": {"encoder_hash_byte_group_vocab": 100, "encoder_config": _GLOBAL, "decoder_config": _GLOBAL},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 128},
    },
    "dots3_note_text": _NOTE,
    "dots3_note": {"text_config": _NOTE, "vision_config": {"per_layer_config": {}, **_ADAPTER}, "audio_config": _ADAPTER},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n_text": {
        **_PER_LAYER, "laurel_rank": 16, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": [128] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gemma4_text": _PER_LAYER,
    "gemma4": {**_IDS, "text_config": _PER_LAYER},
    "gemma4_unified": _IDS,
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "full_attention"]},
    "phi4_multimodal": {"audio_config": {"num_blocks": 2}},
    "roc_bert": {
        **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim"), 64),
        **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), 128),
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {**_SHARED_BLOCK, "num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "zamba2": {
        **_SHARED_BLOCK, "num_hidden_layers": 4, "n_mamba_heads": 4, "adapter_rank": 16, "hybrid_layer_ids": [1, 3],
        "layers_block_type": ["mamba", "hybrid"] * 2,
    },
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), _HEADS),
}  # fmt: skip

# Configs that are not made tiny here, and why.
_DRAFTS = "it drafts for another model, whose keys and values it reads"
_PART = "AutoModelForCausalLM makes no model of its config: its class takes the decoder's part alone"
NOT_TINY: dict[str, str] = {
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), _DRAFTS),
    **dict.fromkeys(("musicgen", "musicgen_melody"), _PART),
    "gemma3n": "transformers needs the package timm for it",
}
# What is declined, and the sentence that says why.
_OTHER_EXPERTS = "fused experts that do not follow transformers' experts interface are not supported"
_PASSED_ON = "its layers hand each other .* beside the hidden states"
_JOINED = "is missing from the checkpoint"  # transformers joins what the checkpoint holds in parts
DECLINED: dict[str, str] = {
    **dict.fromkeys(
        ("inkling_text", "jetmoe", "llama4", "llama4_text", "longcat_flash", "recurrent_gemma", "rwkv"), _OTHER_EXPERTS
    ),
    **dict.fromkeys(("glm_moe_dsa", "hy_v4", "zaya"), _PASSED_ON),
    **dict.fromkeys(("bailing_hybrid", "hrm_text", "inkling2_text", "kimi_linear", "olmo_hybrid"), _JOINED),
    **dict.fromkeys(("cpmant", "gemma3n_text", "prophetnet", "xlnet"), "its hidden states are of shape"),
    **dict.fromkeys(("zamba", "zamba2"), "its layers share weights"),
    **dict.fromkeys(("emu3", "mllama"), "is not a causal language model"),
    "deepseek_v4": "has dtype I64; expected one of",
    "blt": "cannot be run layer by layer",
    "reformer": "cannot be run layer by layer",
    "xlm": "runs between the decoder layers",
}


def shrunk(kind: type[PretrainedConfig]) -> dict[str, Any]:
    """Arguments that make a config of this class tiny."""
    default = kind()
    known = default.to_dict()
    sizes: dict[str, Any] = {}
    for name, size in SIZES.items():
        now = known.get(name)
        own = name in known and name not in kind.attribute_map and not isinstance(now, list | tuple)
        if own and (now is not None or name in MAY_BE_UNSET):
            sizes[name] = size
    for name, inner in vars(default).items():
        if isinstance(inner, PretrainedConfig):
            sizes[name] = shrunk(type(inner))
    return sizes


def overridden(sizes: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes with others in their places, in configs inside configs too."""
    inner = {n: overridden(sizes[n], v) for n, v in others.items() if isinstance(v, Mapping) and isinstance(sizes.get(n), Mapping)}
    return {**sizes, **others, **inner}


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, dict[str, str]]]:
    """What was found, by model type; kept for the README if that is asked for."""
    found: dict[str, dict[str, str]] = {}
    yield found
    if os.environ.get("HUBQUANT_KEEP_ARCHITECTURES") == "1":
        RESULTS.parent.mkdir(exist_ok=True)
        before = json.loads(RESULTS.read_text())["model_types"] if RESULTS.exists() else {}
        known = {name: row for name, row in before.items() if name in CLASSES} | found
        kept = {"transformers": transformers.__version__, "model_types": dict(sorted(known.items()))}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def tiny(model_type: str, folder: Path) -> PretrainedConfig:
    """A random model of the type, saved in the folder."""
    kind = CONFIG_MAPPING[model_type]
    config = kind(**overridden(shrunk(kind), OVERRIDES.get(model_type, {})))
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert size < LARGEST, f"{size:,} parameters"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return AutoConfig.from_pretrained(folder)


def run(decoder: Decoder, tokens: Tensor) -> Tensor:
    hidden = decoder.embed(tokens)
    for index in range(len(decoder.layers)):
        with decoder.layer(index) as layer:
            decoder.run(index, layer, hidden)
    with decoder.head():
        return decoder.logits(hidden)


@torch.no_grad()
def whole(folder: Path, tokens: Tensor) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(input_ids=tokens, use_cache=False).logits.float()


class Folded:
    """A checkpoint with every input that something absorbs scaled by random powers of two up to 2^±spread.

    All its tensors are copies: a product of matrices may sum in another order where its operands lie otherwise in memory.
    """

    def __init__(self, decoder: Decoder, tokens: Tensor, spread: int) -> None:
        self.source, self.changed = decoder.source, dict[str, Tensor]()
        random = torch.Generator().manual_seed(3)
        hidden = decoder.embed(tokens)
        for index in range(len(decoder.layers)):
            with decoder.layer(index) as module:
                inputs = find_inputs(module, hidden[:1].clone(), decoder.call(index))
                tensors = {n: t.detach().clone() for n, t in module.state_dict().items()}
                layer = Layer(decoder.prefix(index), tensors, tuple(inputs), observe(decoder, index, module, inputs, hidden))
            scales: dict[str, Tensor] = {}
            for read in inputs:
                if read.absorber is not None:
                    sources = 2.0 ** torch.randint(-spread, spread + 1, (int(read.absorber.channels.max()) + 1,), generator=random)
                    scales[read.name] = sources[read.absorber.channels]
            self.changed |= {decoder.prefix(index) + n: t for n, t in layer.folded(scales, torch.float32).tensors.items()}

    def names(self) -> list[str]:
        return [*self.changed]

    def as_saved(self, name: str) -> bool:
        """Never transposed: the tensors are the modules'."""
        return False

    def release(self) -> None:
        """Nothing of it lies in a file."""

    def tensor(self, name: str) -> Tensor:
        return self.changed[name] if name in self.changed else self.source.tensor(name).clone()


@pytest.mark.parametrize("model_type", list(CLASSES))
def test_architecture(model_type: str, tmp_path: Path, results: dict[str, dict[str, str]]) -> None:
    if model_type in NOT_TINY:
        results[model_type] = {"not_tiny": NOT_TINY[model_type]}
        pytest.skip(NOT_TINY[model_type])
    config = tiny(model_type, tmp_path / "base")
    if model_type in DECLINED:
        with pytest.raises(BadModel, match=DECLINED[model_type]) as caught:
            check(config, tmp_path)
        results[model_type] = {"declined": str(caught.value)}
        return
    packed, kept = check(config, tmp_path)
    families = [family.architecture for family in FAMILIES if model_type in family.model_types]
    results[model_type] = {"packed": str(packed), "kept": str(kept), "gguf": families[0] if families else ""}


def close(found: Tensor, expected: Tensor) -> None:
    """The same operations on the same numbers: what differs is where tensors lie in memory, and so the order of some sums."""
    torch.testing.assert_close(found, expected, rtol=0, atol=2**-17 * float(expected.abs().max()))


def check(config: PretrainedConfig, folder: Path) -> tuple[int, int]:
    """Runs the whole; returns how many linears were packed, and how many kept in 16 bit."""
    tokens = torch.randint(3, 100, (2, 40), generator=torch.Generator().manual_seed(1))
    decoder = Decoder(config, Checkpoint(folder / "base"))
    base = whole(folder / "base", tokens)
    close(run(decoder, tokens), base)

    # products and quotients by powers of two are exact, so nothing may change at all
    plain, folded = (run(Decoder(config, Folded(decoder, tokens, spread)), tokens) for spread in (0, 2))
    assert torch.equal(plain, folded)

    shapes = decoder.shapes()
    linears = {name for name, shape in shapes.items() if len(shape) == 2 and name not in decoder.outside()}
    parts: Mapping[str, Any] = {
        "routers": decoder.routers(), "float32": decoder.float32(), "transposed": decoder.transposed, "stored": decoder.names.stored
    }  # fmt: skip
    writers = [PackedWriter(variant(v), folder / v, folder / "base", shapes, linears, **parts) for v in VARIANTS]
    calibration = torch.randint(3, 100, (4, 64), generator=torch.Generator().manual_seed(2))
    bookmark = Bookmark(folder / "bookmark", "")
    artifacts = one_pass(decoder, calibration, writers, lambda done, total: None, bookmark)
    assert not bookmark.standing.given_up
    for artifact in artifacts:
        dequantized = run(Decoder(config, PackedSource(folder / artifact.folder)), tokens)
        loaded = whole(folder / artifact.folder, tokens)
        close(loaded, dequantized)
    packed = sum(record.type.startswith("int") for record in artifacts[0].tensors)
    return packed, len(artifacts[0].tensors) - packed


importlib.import_module("hubquant.integrations.transformers")  # our loaders
