"""config.json → the keys {architecture}.* that families share. Each function gives some of them, without the prefix."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hubquant.errors import BadModel
from hubquant.formats.gguf.metadata import Value

Config = Mapping[str, Any]


def completed(config: Config) -> Config:
    """config.json with what it leaves to transformers' defaults. Raises BadModel if transformers rejects it."""
    try:
        return dict(AutoConfig.for_model(**config).to_dict())
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise BadModel(f"config.json cannot be used: {' '.join(str(error).split())}") from None


def positive(config: Config, key: str, default: int | None = None) -> int:
    """A positive whole number of config.json. Raises BadModel naming the key and what stands there."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise BadModel(f"config.json: {key} is {value!r}, expected a positive whole number")
    return value


def number(config: Config, key: str, default: float | None = None) -> float:
    """A number of config.json. Raises BadModel naming the key and what stands there."""
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadModel(f"config.json: {key} is {value!r}, expected a number")
    return float(value)


def head_size(config: Config) -> int:
    return positive(config, "head_dim", positive(config, "hidden_size") // positive(config, "num_attention_heads"))


def require(config: Config, key: str, wanted: Any, default: Any = None, *, because: str) -> None:
    """Raises BadModel with the reason `because` if config.json says something else than llama.cpp computes."""
    found = config.get(key, default)
    found = default if found is None else found
    if found != wanted:
        raise BadModel(f"config.json: {key} is {found!r}; {because}")


def sizes(config: Config) -> dict[str, Value]:
    return {
        "context_length": positive(config, "max_position_embeddings"),
        "embedding_length": positive(config, "hidden_size"),
        "block_count": positive(config, "num_hidden_layers"),
        "feed_forward_length": positive(config, "intermediate_size"),
        "vocab_size": positive(config, "vocab_size"),
    }


def attention(config: Config) -> dict[str, Value]:
    heads, head = positive(config, "num_attention_heads"), head_size(config)
    return {
        "attention.head_count": heads,
        "attention.head_count_kv": positive(config, "num_key_value_heads", heads),
        "attention.key_length": head,
        "attention.value_length": head,
    }


def rms_norm(config: Config) -> dict[str, Value]:
    return {"attention.layer_norm_rms_epsilon": number(config, "rms_norm_eps", 1e-6)}


def check_heads_fill_the_model(config: Config, architecture: str) -> None:
    """Raises BadModel where llama.cpp takes hidden_size for the width of the heads together."""
    heads, head = positive(config, "num_attention_heads"), head_size(config)
    if heads * head != positive(config, "hidden_size"):
        raise BadModel(f"config.json: {heads} heads of {head} are not hidden_size, which llama.cpp's {architecture} takes them for")


def check_activation(config: Config, architecture: str, known: tuple[str, ...] = ("silu", "swish")) -> None:
    found = config.get("hidden_activation") or config.get("hidden_act") or known[0]
    if found not in known:
        raise BadModel(f"config.json: hidden_act is {found!r}; llama.cpp's {architecture} computes {known[0]}")


def sliding_layers(config: Config) -> list[bool]:
    """Of each layer whether it sees a sliding window only."""
    n_layer, layers = positive(config, "num_hidden_layers"), config.get("layer_types")
    if config.get("sliding_window") is None or not config.get("use_sliding_window", True):
        return [False] * n_layer
    return [True] * n_layer if layers is None else [kind == "sliding_attention" for kind in layers]


def context_before_sliding(config: Config) -> dict[str, Value]:
    """The longest text that llama.cpp treats as the model does where its graph has no sliding window."""
    longest = positive(config, "max_position_embeddings")
    return {"context_length": min(longest, positive(config, "sliding_window")) if any(sliding_layers(config)) else longest}


def sliding_window(config: Config, period: int) -> dict[str, Value]:
    """`period`: llama.cpp takes every period-th layer for a full one if the file does not name the layers."""
    slides = sliding_layers(config)
    values: dict[str, Value] = {"attention.sliding_window": positive(config, "sliding_window")}
    if slides != [bool((i + 1) % period) for i in range(len(slides))]:
        values["attention.sliding_window_pattern"] = slides
    return values
