"""The key-value part of a GGUF file that says what the model is and how it was made: general.*, quantize.*, hubquant.*."""

from dataclasses import dataclass
from typing import Any

import gguf

from hubquant import __version__
from hubquant.formats.gguf.imatrix import ImatrixInfo
from hubquant.formats.gguf.mixtures import Mixture
from hubquant.recipe import Frozen

# int is stored as UINT32, float as FLOAT32; a list takes the type of its first element (int: INT32).
Value = bool | int | float | str | list[str] | list[int] | list[float] | list[bool]


@dataclass(frozen=True)
class Typed:
    """A value stored as the type that it is named with (gguf.GGUFValueType; `item_kind`: of an array's items)."""

    value: Any
    kind: int
    item_kind: int | None = None


QUANTIZATION_VERSION = 2  # of ggml's block layouts


class Provenance(Frozen):
    """Where the weights come from and who quantized them. Empty fields are left out of the file.

    `url` and `repo_url` are the web addresses of the base and of the quantized repo. A base with a `repo_id` and no `url` is
    taken to be on huggingface.co; a base that is only a folder has neither.
    """

    name: str
    repo_id: str = ""
    revision: str = ""  # 40 hex digits
    url: str = ""
    repo_url: str = ""
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    quantized_by: str = ""


def general(
    provenance: Provenance, mixture: Mixture, imatrix: ImatrixInfo | None, parameters: int, entries: int
) -> dict[str, Value]:
    """general.*, quantize.imatrix.* and hubquant.*. `entries`: matrices of which the importance is known."""
    model_id = provenance.repo_id or provenance.name
    name, organization, basename, finetune, version, size = gguf.Metadata.get_model_id_components(model_id, parameters)
    url = provenance.url or (f"https://huggingface.co/{provenance.repo_id}" if provenance.repo_id else "")
    values: dict[str, Value] = {
        "general.type": "model",
        "general.name": provenance.name,
        "general.basename": basename or name,
        "general.finetune": finetune or "",
        "general.version": version or "",
        "general.size_label": size or gguf.size_label(parameters, parameters, 0, 0),
        "general.quantized_by": provenance.quantized_by,
        "general.license": provenance.license,
        "general.license.name": provenance.license_name,
        "general.license.link": provenance.license_link,
        "general.repo_url": provenance.repo_url,
        "general.source.repo_url": url,
        "general.source.huggingface.repository": provenance.repo_id,
        "general.tags": list(provenance.tags),
        "general.languages": list(provenance.languages),
        "hubquant.source_sha": provenance.revision,
    }
    if provenance.repo_id:
        values["general.base_model.count"] = 1
        values["general.base_model.0.name"] = provenance.name
        values["general.base_model.0.organization"] = organization or ""
        values["general.base_model.0.repo_url"] = url
    values |= quantization(mixture, imatrix, entries)
    return {key: value for key, value in values.items() if value not in ("", [])}


def quantization(mixture: Mixture, imatrix: ImatrixInfo | None, entries: int) -> dict[str, Value]:
    """How a file was quantized. `entries`: matrices of which the importance is known."""
    values: dict[str, Value] = {
        "general.file_type": mixture.file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
        "hubquant.version": __version__,
    }
    if imatrix is not None:
        values["quantize.imatrix.file"] = imatrix.file
        values["quantize.imatrix.dataset"] = imatrix.dataset
        values["quantize.imatrix.entries_count"] = entries
        values["quantize.imatrix.chunks_count"] = imatrix.chunks
    return values
