"""What would become of a model: the policy's answer, sizes, memory, disk, time, repos. Nothing is made, and no weights are read."""

import shutil
import tempfile
from pathlib import Path

from transformers import PretrainedConfig

from hubquant import estimate, memory, needs
from hubquant.artifact import Base
from hubquant.base import is_gguf, open_base
from hubquant.calibrate.source import read_text
from hubquant.calibrate.text import calibration_windows, load_tokenizer, tokenize
from hubquant.config import Settings
from hubquant.errors import BadModel
from hubquant.formats.gguf.families import family_of_model
from hubquant.hub import publish, snapshot
from hubquant.hub.client import Hub
from hubquant.model.decoder import read_config
from hubquant.needs import Needs
from hubquant.recipe import Frozen, Recipe, variant


class Planned(Frozen):
    """One variant: its size on disk, the repo it would be published in ("" without a namespace), or why it is not made."""

    variant: str
    size_bytes: int
    repo_id: str = ""
    declined: str = ""


class Plan(Frozen):
    """`policy`: its answer, "" if none was asked. `memory_available` is None where the system does not tell."""

    model: str
    parameters: int
    variants: tuple[Planned, ...]
    needs: Needs
    memory_available: int | None
    disk_free: int
    policy: str = ""


def plan(model: str, recipe: Recipe, out: Path, settings: Settings | None = None) -> Plan:
    """`model`: a folder, a GGUF file, or a model on the Hub, of which the config is read. `settings`: a bot's, whose policy and
    namespace count. Raises BadModel, UsageError and what the Hub raises."""
    hub = Hub(settings.endpoint if settings else "")
    local = Path(model)
    on_hub = not local.exists() and model.count("/") == 1
    base = snapshot.pin(hub, model) if on_hub else Base(repo_id=local.resolve().name, revision="", fingerprint="")
    config = _config_on_hub(hub, base) if on_hub else _config_here(local, recipe)
    shape = needs.shape_of(config)
    why = {name: reason for name in recipe.variants if (reason := _declined(name, config))}
    made = recipe.model_copy(update={"variants": tuple(name for name in recipe.variants if name not in why)})
    namespace = settings.publish.namespace if settings else ""
    planned = (
        Planned(
            variant=name,
            size_bytes=0 if name in why else estimate.size_bytes(variant(name), shape.parameters, shape.vocabulary),
            repo_id=publish.repo_id_for(base.repo_id, variant(name), namespace) if namespace and name not in why else "",
            declined=why.get(name, ""),
        )
        for name in recipe.variants
    )
    return Plan(
        model=base.repo_id,
        parameters=shape.parameters,
        variants=tuple(planned),
        needs=needs.needs(shape, made),
        memory_available=memory.available(),
        disk_free=shutil.disk_usage(_existing(out)).free,
        policy=_policy(settings, hub, model, recipe) if settings and on_hub else "",
    )


def _policy(settings: Settings, hub: Hub, repo_id: str, recipe: Recipe) -> str:
    from hubquant.bot import intake  # needs an extra

    return intake.plan(settings, hub, repo_id, recipe.variants, "plan").reason


def _config_on_hub(hub: Hub, base: Base) -> PretrainedConfig:
    with tempfile.TemporaryDirectory(prefix="hubquant-") as folder:
        text = hub.read_text(base.repo_id, "config.json", base.revision)
        (Path(folder) / "config.json").write_text(text or "")
        return read_config(Path(folder))


def _config_here(model: Path, recipe: Recipe) -> PretrainedConfig:
    """The calibration text is tokenized, as the pass will: it may be too short, and what that takes is part of the process."""
    if is_gguf(model):
        opened = open_base(model)
        config, tokenizer = opened.config, opened.tokenizer
    else:
        config, tokenizer = read_config(model), load_tokenizer(model)
    tokens = tokenize(tokenizer, read_text(recipe.calibration.source))
    calibration_windows(tokens, recipe.calibration.windows, recipe.calibration.window)
    return config


def _declined(name: str, config: PretrainedConfig) -> str:
    if variant(name).format != "gguf":
        return ""
    try:
        family_of_model(config.to_dict())
    except BadModel as error:
        return str(error)
    return ""


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(f for f in (folder.resolve(), *folder.resolve().parents) if f.exists())
