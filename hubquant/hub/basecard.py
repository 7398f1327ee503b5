"""What a card takes over from its base: licence, language, purpose, and the shape that memory is estimated from."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubquant.hub.frontmatter import front_matter_of
from hubquant.recipe import Frozen

LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
SLUG = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
MAX_CONFIG_BYTES = 1 << 20
KV_BYTES_PER_NUMBER = 2  # runtimes keep keys and values in 16 bit unless told otherwise


class BaseCard(Frozen):
    """Checked on the way in: the base's README and config were written by strangers. Anything of another shape is left out."""

    license: str = ""
    license_name: str = ""
    license_link: str = ""
    languages: tuple[str, ...] = ()
    pipeline_tag: str = "text-generation"
    not_for_all_audiences: bool = False
    conversational: bool = False
    kv_bytes_per_token: int = 0
    context_length: int = 0
    legal_files: tuple[str, ...] = ()  # names of the licence texts that are republished

    @classmethod
    def read(cls, folder: Path) -> "BaseCard":
        """From a downloaded model; a missing file leaves its part empty."""
        card, config, tokenizer = front_matter_of(folder), _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
        tags = card.get("tags")
        purpose = _text(card.get("pipeline_tag"))
        return cls(
            license=_slug(card.get("license")),
            license_name=_text(card.get("license_name")),
            license_link=_text(card.get("license_link")),
            languages=tuple(name for name in _texts(card.get("language")) if LANGUAGE.fullmatch(name)),
            pipeline_tag=purpose if SLUG.fullmatch(purpose) else "text-generation",
            not_for_all_audiences="not-for-all-audiences" in _texts(tags),
            conversational=bool(tokenizer.get("chat_template")) or any(folder.glob("chat_template*")),
            kv_bytes_per_token=kv_bytes_per_token(config),
            context_length=_count(_decoder(config).get("max_position_embeddings")),
            legal_files=tuple(legal_files(folder)),
        )


def legal_files(folder: Path) -> list[str]:
    """The licence texts at the root of a model folder, by name."""
    found = (path for pattern in ("LICENSE*", "NOTICE*", "USE_POLICY*") for path in folder.glob(pattern))
    return sorted(path.name for path in found if path.is_file())


def kv_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Keys and values of one token over all layers, in 16 bit; 0 where the config does not tell (other attention than usual)."""
    decoder = _decoder(config)
    layers, heads = _count(decoder.get("num_hidden_layers")), _count(decoder.get("num_attention_heads"))
    hidden = _count(decoder.get("hidden_size"))
    if not (layers and heads and hidden):
        return 0
    kv_heads = _count(decoder.get("num_key_value_heads")) or heads
    head_dim = _count(decoder.get("head_dim")) or hidden // heads
    return 2 * layers * kv_heads * head_dim * KV_BYTES_PER_NUMBER


def _decoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Models that also see or hear keep the decoder's part under text_config."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str:
    """One short printable line, or nothing."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 200 else ""


def _texts(value: object) -> list[str]:
    return [text for text in map(_text, value if isinstance(value, list) else [value]) if text]


def _slug(value: object) -> str:
    text = next(iter(_texts(value)), "").lower()
    return text if SLUG.fullmatch(text) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value < 1 << 31 else 0
