"""The model families that can be written as GGUF: one row each."""

from collections.abc import Collection, Mapping
from typing import Any

from hubquant.errors import BadModel, UnknownFamily
from hubquant.formats.gguf.families.cohere import COHERE2
from hubquant.formats.gguf.families.deepseek import DEEPSEEK2
from hubquant.formats.gguf.families.family import Family
from hubquant.formats.gguf.families.gemma import GEMMA2, GEMMA3
from hubquant.formats.gguf.families.gpt import FALCON, FALCON_TWO_NORMS, GPT2, GPTNEOX, STARCODER2
from hubquant.formats.gguf.families.gpt_oss import GPT_OSS
from hubquant.formats.gguf.families.llama import GRANITE, LLAMA, QWEN2, QWEN3, SMOLLM3
from hubquant.formats.gguf.families.moe import MIXTRAL, QWEN3MOE
from hubquant.formats.gguf.families.olmo import OLMO2
from hubquant.formats.gguf.families.phi import PHI3

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    QWEN2,
    QWEN3,
    SMOLLM3,
    GRANITE,
    GEMMA2,
    GEMMA3,
    PHI3,
    OLMO2,
    COHERE2,
    GPT2,
    GPTNEOX,
    FALCON,
    FALCON_TWO_NORMS,
    STARCODER2,
    MIXTRAL,
    QWEN3MOE,
    DEEPSEEK2,
    GPT_OSS,
)


def family_of_model(config: Mapping[str, Any]) -> Family:
    """The row for a config.json. Raises BadModel naming the architecture and the known ones."""
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types and family.applies(config):
            return family
    known = ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.model_types))
    name = (config.get("architectures") or ["?"])[0]
    raise BadModel(f"architecture {name} (model_type {model_type!r}) cannot be written as GGUF yet; known: {known}")


def family_of_file(architecture: str, stored: Collection[str] = ()) -> Family:
    """The row for a GGUF file's general.architecture; of several, that whose layers are among the `stored` tensors, or the first.

    Raises UnknownFamily naming the known ones.
    """
    candidates = [family for family in FAMILIES if family.architecture == architecture]
    if candidates:
        return next((family for family in candidates[1:] if family.is_of(stored)), candidates[0])
    known = ", ".join(dict.fromkeys(family.architecture for family in FAMILIES))
    raise UnknownFamily(f"GGUF architecture {architecture!r} cannot be read; known: {known}")
