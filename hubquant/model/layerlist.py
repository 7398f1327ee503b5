"""Where a model's decoder layers are."""

from torch import nn
from transformers import PretrainedConfig

from hubquant.errors import BadModel


def decoder_layers(model: nn.Module, config: PretrainedConfig) -> tuple[str, nn.ModuleList]:
    """The list of modules with most of the weights, and its name; one of the text model goes before those of other parts (vision,
    audio), one as long as the config says before others."""
    text = config.get_text_config(decoder=True)
    wanted = getattr(text, "num_hidden_layers", None)
    lists = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and all(any(True for _ in x.parameters()) for x in m)
    }
    outer = {n: m for n, m in lists.items() if not any(n.startswith(other + ".") for other in lists)}
    if not outer:
        raise BadModel(f"architecture {config.model_type!r}: no list of decoder layers found in its modules")

    def rank(name: str) -> tuple[bool, bool, int]:
        of_text = type(_config_of(model, name)) is type(text)
        return of_text, len(outer[name]) == wanted, sum(p.numel() for p in outer[name].parameters())

    name = max(outer, key=rank)
    return name, outer[name]


def _config_of(model: nn.Module, name: str) -> object:
    """That of the innermost model around the module."""
    while name and not isinstance(getattr(model.get_submodule(name), "config", None), PretrainedConfig):
        name = name.rpartition(".")[0]
    return getattr(model.get_submodule(name), "config", None)
