"""A base model opened for running: a folder of Hugging Face files, or a GGUF file in 16 or 32 bit."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from hubquant.artifact import Base, file_sha256
from hubquant.calibrate.text import load_tokenizer
from hubquant.errors import BadModel, UsageError
from hubquant.formats.gguf.families import family_of_model
from hubquant.formats.gguf.reader import GgufSource
from hubquant.formats.gguf.rope import ROPE_TENSORS
from hubquant.formats.gguf.skeleton import PLAIN, Skeleton
from hubquant.model.checkpoint import Checkpoint, TensorSource
from hubquant.model.decoder import Decoder, read_config

CPU = torch.device("cpu")


@dataclass(frozen=True)
class OpenBase:
    """What it takes to run a base and its variants, which differ from it in the weights alone."""

    config: PretrainedConfig
    tokenizer: Any
    weights: TensorSource
    device: torch.device

    def decoder(self, weights: TensorSource | None = None, dtype: torch.dtype | None = None) -> Decoder:
        """The base's decoder, or one of its variants', in `dtype` if one is named."""
        return Decoder(self.config, weights or self.weights, self.device, dtype)


def device_named(name: str = "") -> torch.device:
    """The device of that name ("cpu", "cuda", "cuda:1"); of "" a GPU if there is one. Raises UsageError if there is none such."""
    found = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if found else "cpu"))
    except RuntimeError:
        raise UsageError(f"{name!r} is no device; name cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not found:
        raise UsageError(f"{name} was asked for, and torch {torch.__version__} sees no GPU; name cpu or leave --device out")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"{name} was asked for, and there are {torch.cuda.device_count()} GPUs, counted from 0")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"hubquant runs on cpu and cuda, not on {name}")
    return device


def describe_device(device: torch.device) -> str:
    """What it is called: "cpu", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def is_gguf(model: Path) -> bool:
    return model.suffix == ".gguf"


def open_base(model: Path, device: torch.device = CPU) -> OpenBase:
    """Raises BadModel: damaged or incomplete files, or a GGUF file of which transformers can make no model."""
    if not is_gguf(model):
        return OpenBase(read_config(model), load_tokenizer(model), Checkpoint(model), device)
    weights = GgufSource(model, device)
    try:
        config = AutoConfig.from_pretrained(model.parent, gguf_file=model.name)
        tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError, OSError, ImportError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadModel(f"{model.name} cannot be run here, transformers makes no model of it: {why}") from None
    _check_read(config, weights)
    return OpenBase(config, tokenizer, weights, device)


def _check_read(config: PretrainedConfig, weights: GgufSource) -> None:
    """transformers takes what it does not read of a file from the defaults of the model's class, and says nothing. So what it read
    is written again and compared. Raises BadModel naming what differs."""
    stated, name = config.to_dict(), weights.header.name
    try:
        family = family_of_model(stated)
        read = family.hyperparameters(stated)
    except BadModel as error:
        raise BadModel(f"{name} cannot be run here as transformers reads it: {error}") from None
    scaled = weights.parameters.get("rope.scaling.type") != "none"
    scaling = {key for key in weights.parameters if scaled and key.startswith("rope.scaling.")}
    for key in sorted((weights.parameters.keys() & read.keys()) | scaling):
        found, wanted = read.get(key), weights.parameters[key]
        same = math.isclose(found, wanted, rel_tol=1e-6) if isinstance(found, float) else found == wanted
        if key != "context_length" and not same:
            raise BadModel(f"{name} cannot be run here, transformers takes {key} for {found!r}; the file says {wanted!r}")
    extra = family.extra(stated)
    for tensor in ROPE_TENSORS:
        if (tensor in extra) != (tensor in weights.header.tensors):
            raise BadModel(f"{name} cannot be run here, transformers does not read {tensor}")
    decoder = Decoder(config, weights)
    places = {tensor: decoder.source.find(tensor) for tensor in decoder.shapes()}
    for tensor in sorted(set(weights.names()) - {place.name for place in places.values() if place is not None}):
        raise BadModel(f"{name} cannot be run here, the model that transformers makes of it has no {tensor}")
    for tensor in (tensor for tensor, place in places.items() if place is None):
        raise BadModel(f"{name} cannot be run here, it has no {tensor} for the model that transformers makes of it")


def describe_gguf(file: Path) -> Base:
    """A GGUF file as a base, under its name without the type. Raises BadModel if it is malformed or already quantized."""
    skeleton = Skeleton(file)
    name = file.stem
    for plain in PLAIN:
        for mark in (f"-{plain}", f".{plain}"):
            name = name.removesuffix(mark).removesuffix(mark.lower())
    return Base(
        repo_id=name,
        revision="",
        fingerprint=file_sha256(file),
        license=str(skeleton.header.values.get("general.license", "")),
        architecture=skeleton.architecture,
        parameters=skeleton.n_parameters,
        size_bytes=file.stat().st_size,
    )
