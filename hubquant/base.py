"""A base model opened for running: a folder of Hugging Face files, or a GGUF file in 16 or 32 bit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from hubquant.artifact import Base, file_sha256
from hubquant.calibrate.text import load_tokenizer
from hubquant.errors import BadModel
from hubquant.formats.gguf.reader import GgufSource
from hubquant.formats.gguf.skeleton import PLAIN, Skeleton
from hubquant.model.checkpoint import Checkpoint, TensorSource
from hubquant.model.decoder import Decoder, read_config


@dataclass(frozen=True)
class OpenBase:
    """What it takes to run a base and its variants, which differ from it in the weights alone."""

    config: PretrainedConfig
    tokenizer: Any
    weights: TensorSource

    def decoder(self, weights: TensorSource | None = None) -> Decoder:
        """The base's decoder, or one of its variants'."""
        return Decoder(self.config, weights or self.weights, device())


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_gguf(model: Path) -> bool:
    return model.suffix == ".gguf"


def open_base(model: Path) -> OpenBase:
    """Raises BadModel: damaged or incomplete files, or a GGUF file of which transformers can make no model."""
    if not is_gguf(model):
        return OpenBase(read_config(model), load_tokenizer(model), Checkpoint(model))
    weights = GgufSource(model)
    try:
        config = AutoConfig.from_pretrained(model.parent, gguf_file=model.name)
        tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError, OSError, ImportError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadModel(f"{model.name} cannot be run here, transformers makes no model of it: {why}") from None
    return OpenBase(config, tokenizer, weights)


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
