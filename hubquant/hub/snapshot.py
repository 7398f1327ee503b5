"""A base model pinned and brought to disk: which files decide the output, whether the model can be had at all, and an exact copy of
one commit, checked file by file."""

import glob
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import ModelInfo

from hubquant.artifact import Base, file_sha256
from hubquant.errors import BadModel, DiskFull, HubError, RepoGone
from hubquant.hub.client import Hub
from hubquant.hub.files import RemoteFile
from hubquant.hub.frontmatter import front_matter_of

DECIDING = (
    "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges*", "*.model",
    "special_tokens_map.json", "chat_template*",
)  # fmt: skip
CARRIED = ("README.md", "LICENSE*", "NOTICE*", "USE_POLICY*")
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
QUANTIZED_TAGS = frozenset({"gguf", "awq", "gptq", "compressed-tensors", "bitsandbytes", "exl2", "exl3", "mlx"})
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
INDEX = "model.safetensors.index.json"
FREE_MARGIN_BYTES = 256 << 20
log = logging.getLogger(__name__)


def _match(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def deciding(names: Iterable[str]) -> list[str]:
    """The names of files that decide the output: only at the root (subfolders hold other exports), and of the weights only those
    that `from_pretrained` reads (some repos carry a second copy under other names). Never a pickle."""
    root = sorted(name for name in names if "/" not in name)
    weights = [name for name in root if WEIGHTS.fullmatch(name)]
    if not weights and INDEX in root:
        weights = [name for name in root if name.endswith(".safetensors")]
    others = [name for name in root if _match(name, DECIDING) and not _match(name, PICKLES)]
    return sorted({*weights, *others})


# In these some models (gpt-oss) are published first: there is no other base.
ORIGINAL_METHODS = ("mxfp4",)


def refusal(info: ModelInfo) -> str | None:
    """Why this model cannot be quantized, in one sentence, or None: what the Hub's model info alone tells. Not here: whether a
    gated model may be read (`pin` asks)."""
    names = [sibling.rfilename for sibling in info.siblings or ()]
    return _quantized(info) or _missing_files(info.id, names)


def _quantized(info: ModelInfo) -> str | None:
    config = (info.config or {}).get("quantization_config")
    if config and _method(config) not in ORIGINAL_METHODS:
        return f"{info.id} is itself quantized ({_method(config)}); name the model that it was made from"
    tags = info.tags or []
    found = next((t for t in tags if t in QUANTIZED_TAGS or t.startswith("base_model:quantized:")), None)
    return f"{info.id} is itself quantized (tag {found}); name the model that it was made from" if found else None


def _method(config: object) -> str:
    return str(config.get("quant_method", "unnamed method")) if isinstance(config, Mapping) else "unnamed method"


def _missing_files(name: str, files: list[str]) -> str | None:
    root = {file for file in files if "/" not in file}
    if "config.json" not in root:
        return f"{name} has no config.json, so it is not a model for transformers (an adapter, or weights for another program)"
    if not any(WEIGHTS.fullmatch(file) for file in root) and INDEX not in root:
        pickles = sorted(file for file in root if _match(file, PICKLES))
        if pickles:
            return f"{name} has only pickled weights ({pickles[0]}), which can run code; ask its author for safetensors"
        return f"{name} has no weights as safetensors (model.safetensors, or shards with an index)"
    if missing := _missing_shard(root):
        return f"{name} is incomplete: the shard {missing} is missing"
    if not any(_match(file, TOKENIZERS) for file in root):
        return f"{name} has no tokenizer (none of {', '.join(TOKENIZERS)}), so nothing can be measured"
    return None


def _missing_shard(root: Iterable[str]) -> str | None:
    shards = [match for match in map(SHARD.fullmatch, root) if match]
    have = {match.group(0) for match in shards}
    for total in sorted({match.group(2) for match in shards}):
        wanted = [f"model-{i:05d}-of-{total}.safetensors" for i in range(1, int(total) + 1)]
        if missing := next((name for name in wanted if name not in have), None):
            return missing
    return None


def pin(hub: Hub, repo_id: str, revision: str | None = None) -> Base:
    """The model at the commit that the revision (default: main) stands for now.

    Raises BadModel, GatedModel, RepoGone.
    """
    info = hub.model_info(repo_id, revision, files_metadata=True)
    if reason := refusal(info):
        raise BadModel(reason)
    if not info.sha:
        raise RepoGone(f"{repo_id} has no commit yet; wait until its files are there")
    if info.gated:
        hub.check_access(repo_id)
    files = _files(info, deciding)
    config = info.config or {}
    return Base(
        repo_id=info.id,
        revision=info.sha,
        fingerprint=_fingerprint((file.name, file.hash, file.size) for file in files),
        license=_license(info),
        architecture=str(next(iter(config.get("architectures") or ()), "")),
        parameters=info.safetensors.total if info.safetensors else 0,
        size_bytes=sum(file.size for file in files if file.name.endswith(".safetensors")),
    )


def _files(info: ModelInfo, choose: Callable[[list[str]], list[str]]) -> list[RemoteFile]:
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    files = []
    for name in choose(list(siblings)):
        sibling = siblings[name]
        content = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        size = sibling.lfs.size if sibling.lfs else sibling.size
        if content is None or size is None:
            raise HubError(f"the Hub gives no hash and size for {name} of {info.id}, so its copy could not be checked")
        files.append(RemoteFile(name, content, size))
    return files


def _fingerprint(files: Iterable[tuple[str, str, int]]) -> str:
    lines = "".join(f"{name}\t{content}\t{size}\n" for name, content, size in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _license(info: ModelInfo) -> str:
    """From the card, else from the tags; "" if unknown. A list (it happens) counts as its first entry."""
    named: object = info.card_data.license if info.card_data else None
    tagged = next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), "")
    return _first(named) or tagged


def _first(value: object) -> str:
    if isinstance(value, list):
        value = value[0] if value else ""
    return value if isinstance(value, str) else ""


def download(hub: Hub, base: Base, folder: Path) -> Path:
    """Exactly the deciding files, README and licence texts of the pinned commit in `folder`, every one checked against its hash.
    What is there and right is kept, what is missing or wrong is fetched (again): repeat it or interrupt it at any moment.

    Raises DiskFull, GatedModel, RepoGone, BadModel.
    """
    info = hub.model_info(base.repo_id, base.revision, files_metadata=True)
    if reason := refusal(info):
        raise BadModel(reason)
    wanted = _files(info, lambda names: [*deciding(names), *(n for n in names if "/" not in n and _match(n, CARRIED))])
    folder.mkdir(parents=True, exist_ok=True)
    wrong = _wrong(wanted, folder)
    for _ in range(2):  # the second time for files that arrived damaged
        if wrong:
            _make_room(folder, base.repo_id, wrong)
            _fetch(hub, base, folder, wrong)
            wrong = _wrong(wanted, folder)
    if wrong:
        raise HubError(f"{wrong[0].name} of {base.repo_id} arrived twice with another content than the Hub states; try again later")
    return _checked(folder, base.repo_id)


def _wrong(wanted: list[RemoteFile], folder: Path) -> list[RemoteFile]:
    return [file for file in wanted if not file.is_at(folder / file.name)]


def download_texts(hub: Hub, base: Base, folder: Path) -> Path:
    """What a card is made from, without the weights: README, licence texts, config and chat template of the pinned commit."""
    patterns = [*CARRIED, "config.json", "tokenizer_config.json", "chat_template*"]
    hub.call(
        f"downloading the card of {base.repo_id}",
        base.repo_id,
        lambda: hub.api.snapshot_download(base.repo_id, revision=base.revision, local_dir=folder, allow_patterns=patterns),
    )
    return folder


def _fetch(hub: Hub, base: Base, folder: Path, files: list[RemoteFile]) -> None:
    log.info("downloading %d files of %s at %s", len(files), base.repo_id, base.revision[:8])
    for file in files:
        (folder / file.name).unlink(missing_ok=True)  # the client takes a file that it has fetched before as it is
    names = [glob.escape(file.name) for file in files]
    hub.call(
        f"downloading {base.repo_id} to {folder}",
        base.repo_id,
        lambda: hub.api.snapshot_download(base.repo_id, revision=base.revision, local_dir=folder, allow_patterns=names),
    )


def _make_room(folder: Path, repo_id: str, wanted: list[RemoteFile]) -> None:
    need = sum(file.size for file in wanted) + FREE_MARGIN_BYTES
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DiskFull(
            f"{repo_id} needs {need / 1e9:.2f} GB in {folder}, but {free / 1e9:.2f} GB are free; free some or use another folder"
        )


def _checked(folder: Path, name: str) -> Path:
    """The Hub's info is a summary; the files have the last word."""
    if reason := _folder_refusal(folder, name):
        raise BadModel(reason)
    return folder


def _folder_refusal(folder: Path, name: str) -> str | None:
    if reason := _missing_files(name, [path.name for path in folder.iterdir() if path.is_file()]):
        return reason
    config = _config(folder, name)
    quantization = config.get("quantization_config")
    if quantization and _method(quantization) not in ORIGINAL_METHODS:
        return f"{name} is itself quantized ({_method(quantization)}); name the model that it was made from"
    return None


def _config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadModel(f"config.json of {name} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise BadModel(f"config.json of {name} is not a JSON object")
    return config


def fingerprint_folder(folder: Path) -> Base:
    """A local folder as a base. Its fingerprint takes the sha256 of every file, so it differs from the one that a Hub gives for
    the same files (there small files count by their git id).

    Raises BadModel.
    """
    if not folder.is_dir():
        raise BadModel(f"{folder} is not a folder; name a folder with a model, or a model on the Hub as ORGANISATION/NAME")
    name = folder.resolve().name
    _checked(folder, name)
    files = [folder / file for file in deciding(path.name for path in folder.iterdir() if path.is_file())]
    return Base(
        repo_id=name,
        revision="",
        fingerprint=_fingerprint((path.name, file_sha256(path), path.stat().st_size) for path in files),
        license=_first(front_matter_of(folder).get("license")),
        architecture=str(next(iter(_config(folder, name).get("architectures") or ()), "")),
        size_bytes=sum(path.stat().st_size for path in files if path.suffix == ".safetensors"),
    )
