"""README.md on the Hub's side: its front matter, the check before a commit, and the tags that come from it."""

import math
import re
from typing import Any

import yaml

FENCE = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z0-9]+)*|code|multilingual")
REPO_ID = re.compile(r"(?:\w[\w.-]{0,95}/)?\w[\w.-]{0,95}")
RELATIONS = ("adapter", "merge", "quantized", "finetune")
# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0",
    "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl",
    "lgpl-2.1", "lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0",
    "odc-by", "odbl", "openmdw-1.0", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl",
    "lgpl-lr", "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "grok2-community", "gemma", "unknown", "other",
)  # fmt: skip


class BadFrontMatter(Exception):
    """The block between the two --- lines is not a YAML mapping; the message says where."""


def front_matter(text: str) -> dict[str, Any]:
    """The metadata of a card as plain JSON values; {} without a block. Raises BadFrontMatter."""
    match = FENCE.match(text)
    if match is None:
        return {}
    try:
        data = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, ValueError) as error:
        raise BadFrontMatter(f"YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise BadFrontMatter(f"YAML: the metadata must be a mapping, not {type(data).__name__}")
    return {str(key): plain(value) for key, value in data.items()}


def body(text: str) -> str:
    """The card without its front matter."""
    return FENCE.sub("", text, count=1).lstrip("\r\n")


def plain(value: Any) -> Any:
    """Only what JSON can say: dates become text, NaN and infinity too."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def check(text: str) -> tuple[list[str], list[str]]:
    """Errors (the commit is refused) and warnings about a model card."""
    try:
        data = front_matter(text)
    except BadFrontMatter as error:
        return [str(error)], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card (https://huggingface.co/docs/hub/model-cards#model-card-metadata)"]
    errors = []
    unknown = [name for name in as_list(data.get("license")) if name not in LICENSES]
    if unknown:
        errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}], not {unknown[0]!r}')
    for key in ("base_model", "datasets"):
        bad = [name for name in as_list(data.get(key)) if not REPO_ID.fullmatch(name)]
        if bad:
            errors.append(f'"{key}" with value {bad[0]!r} is not valid. Use a model id from https://hf.co/models.')
    relation = data.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}], not {relation!r}')
    errors += [f'"language" with value {code!r} is not valid. Use an ISO 639 code.' for code in _bad_languages(data)]
    for key in ("pipeline_tag", "library_name"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    if "tags" in data and not (isinstance(data["tags"], list) and all(isinstance(tag, str) for tag in data["tags"])):
        errors.append('"tags" must be an array of strings')
    if "model-index" in data:
        errors += _check_model_index(data["model-index"])
    return errors, []


def _bad_languages(data: dict[str, Any]) -> list[str]:
    return [code for code in as_list(data.get("language")) if not LANGUAGE.fullmatch(code)]


def _check_model_index(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for at, model in enumerate(index):
        where = f'"model-index[{at}]'
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'{where}.name" must be a string')
        elif not isinstance(model.get("results"), list):
            errors.append(f'{where}.results" must be an array')
        else:
            for number, result in enumerate(model["results"]):
                errors += _check_result(f"{where}.results[{number}]", result)
    return errors


def _check_result(where: str, result: Any) -> list[str]:
    if not isinstance(result, dict):
        return [f'{where}" must be an object']
    errors = []
    for key in ("task", "dataset"):
        if key in result and not isinstance((result[key] or {}).get("type") if isinstance(result[key], dict) else None, str):
            errors.append(f'{where}.{key}.type" is required and must be a string')
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not all(
        isinstance(metric, dict) and "type" in metric and "value" in metric for metric in metrics
    ):
        errors.append(f'{where}.metrics" must be an array of {{type, value}}')
    return errors
