"""From a measured output folder to complete repos: plan, one atomic commit each, verify, make public. Every step repeats
harmlessly, and no repo is touched that hubquant did not make."""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelInfo

from hubquant.artifact import Base, Report
from hubquant.config import Publish
from hubquant.errors import HubError, HubquantError, RepoGone
from hubquant.hub import card, manifest, snapshot
from hubquant.hub.basecard import BaseCard
from hubquant.hub.client import Hub
from hubquant.hub.failures import HeadMoved
from hubquant.hub.files import File
from hubquant.hub.manifest import Manifest
from hubquant.hub.records import Records
from hubquant.recipe import Frozen, Recipe, Variant
from hubquant.recipe import variant as variant_of

MAX_NAME = 96
OURS = re.compile(r"-(AWQ|GPTQ-(Int\d|Auto-[\d.]+(bpw|MB|GB))|GGUF)(-(g\d+|row|asym|static|actorder|head))*$")
MADE_BY_HUB = frozenset({".gitattributes"})
DECISIONS = 3  # how often the repo is read anew when somebody commits in between


class RepoPlan(Frozen):
    """One repo to publish and the variants that it holds."""

    repo_id: str
    variants: tuple[str, ...]


class PublishedRepo(Frozen):
    """`files`: name → sha256 of everything in it but the manifest. `changed`: False if it was already so."""

    repo_id: str
    url: str
    commit: str
    files: dict[str, str]
    changed: bool


def repo_id_for(base_repo_id: str, variant: Variant, namespace: str) -> str:
    """NAMESPACE/NAME-SUFFIX with a name that the Hub admits: no `--` or `..`, at most 96 characters."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", base_repo_id.split("/")[-1])
    name = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", name)).strip("-.") or "model"
    room = MAX_NAME - len(variant.repo_suffix) - 1
    return f"{namespace}/{name[:room].rstrip('-.')}-{variant.repo_suffix}"


def repo_ids(base: Base, recipe: Recipe, namespace: str) -> list[str]:
    """Every repo that the recipe would make of the base."""
    return list(dict.fromkeys(repo_id_for(base.repo_id, variant_of(name), namespace) for name in recipe.variants))


def plan(report: Report, namespace: str) -> list[RepoPlan]:
    """The variants that passed the gate, grouped into repos, in the recipe's order."""
    refusals = refused(report)
    grouped: dict[str, list[str]] = {}
    for artifact in report.artifacts:
        if artifact.variant not in refusals:
            grouped.setdefault(repo_id_for(report.base.repo_id, variant_of(artifact.variant), namespace), []).append(
                artifact.variant
            )
    return [RepoPlan(repo_id=repo_id, variants=tuple(names)) for repo_id, names in grouped.items()]


def refused(report: Report) -> dict[str, str]:
    """Variant → why it is not published."""
    reasons: dict[str, str] = {}
    taken: set[str] = set()
    for artifact in report.artifacts:
        variant = variant_of(artifact.variant)
        if not report.passed(variant.name):
            failed = [v.reason for v in report.verdicts if v.variant == variant.name and not v.passed]
            reasons[variant.name] = "; ".join(failed) or "not measured"
        elif variant.format != "gguf" and variant.repo_suffix in taken:
            reasons[variant.name] = f"another variant takes the repo -{variant.repo_suffix}; make one of them"
        taken.add(variant.repo_suffix)
    return reasons


def publish(
    hub: Hub,
    repo: RepoPlan,
    report: Report,
    folder: Path,
    settings: Publish,
    model_folder: Path | None = None,
    records: Records | None = None,
) -> PublishedRepo:
    """Bring one repo to the state of the report. `folder`: the pass's output. `model_folder`: the base on disk, complete; without
    it, or if it is gone, its card and licence texts are fetched again.

    Raises NotAuthorized, HubUnavailable, RepoGone (a person deleted the repo), HubError (the repo is not ours, or the card is
    refused), HubquantError (a file of `folder` is not the one that was measured).
    """
    hub.check_can_write(repo.repo_id.split("/")[0])
    files = contents(hub, repo, report, folder, settings, model_folder)
    card.validate(_text(files, "README.md"), hub)
    for decision in range(1, DECISIONS + 1):
        try:
            info = _ours(hub, repo.repo_id, report, records)
            commit, changed = _bring_up_to_date(hub, repo.repo_id, report, files, info)
            break
        except HeadMoved:
            if decision == DECISIONS:
                raise
    _verify(hub, repo.repo_id, commit, report, files)
    hidden_by_a_person = records is not None and records.finished(repo.repo_id)
    if info.private and not settings.private and not hidden_by_a_person:
        hub.set_private(repo.repo_id, False)
    if settings.collection:
        hub.add_to_collection(repo.repo_id, settings.collection, repo.repo_id.split("/")[0])
    if records is not None:
        records.finish(repo.repo_id, commit)
    hashes = {file.path: file.sha256 for file in files if file.path != manifest.NAME}
    return PublishedRepo(repo_id=repo.repo_id, url=f"{hub.endpoint}/{repo.repo_id}", commit=commit, files=hashes, changed=changed)


def contents(hub: Hub, repo: RepoPlan, report: Report, folder: Path, settings: Publish, model_folder: Path | None) -> list[File]:
    """Every file of the repo: the artifacts' as they were measured, the base's licence texts, the card, the manifest."""
    by_path: dict[str, File] = {}  # by path: GGUF variants share their importance matrix
    for name in repo.variants:
        artifact = report.artifact(name)
        if found := manifest.problems(folder / artifact.folder, artifact.files):
            raise HubquantError(f"{folder / artifact.folder} is not what was measured: {'; '.join(found)}; make {name} again")
        by_path |= {path: File(path, folder / artifact.folder / path, sha256) for path, sha256 in artifact.files.items()}
        if variant_of(name).format != "gguf":
            _check_config(folder / artifact.folder / "config.json")
    files = list(by_path.values())
    base, texts = _from_base(hub, report.base, model_folder)
    files += [file for file in texts if file.path not in {known.path for known in files}]
    part = manifest.restrict(report, repo.variants)
    text = card.build(part, repo.repo_id, base, hub.endpoint, settings.quantized_by)
    files.append(File.of_bytes("README.md", text.encode()))
    hashes = {file.path: file.sha256 for file in files}
    return [*files, File.of_bytes(manifest.NAME, Manifest.of(report, repo.repo_id, repo.variants, hashes).json_bytes())]


def _check_config(path: Path) -> None:
    """Without quantization_config the packed weights load as a broken plain model, or not at all."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HubquantError(f"cannot read {path}: {error}; make the variant again") from None
    if not config.get("quantization_config"):
        raise HubquantError(f"{path} has no quantization_config, so nothing could load it; make the variant again")


def _from_base(hub: Hub, base: Base, model_folder: Path | None) -> tuple[BaseCard, list[File]]:
    if model_folder is not None and (model_folder / "config.json").is_file():
        found = BaseCard.read(model_folder)
        return found, [File.of_bytes(name, (model_folder / name).read_bytes()) for name in found.legal_files]
    if not base.revision:
        return BaseCard(), []
    with tempfile.TemporaryDirectory(prefix="hubquant-") as folder:
        return _from_base(hub, base, snapshot.download_texts(hub, base, Path(folder)))


def _ours(hub: Hub, repo_id: str, report: Report, records: Records | None) -> ModelInfo:
    """The repo, created private if need be. Raises unless hubquant may write to it."""
    info = _find(hub, repo_id)
    if info is None:
        if records is not None and records.finished(repo_id):
            raise RepoGone(
                f"{repo_id} was published and has been deleted since, so it is not made again; "
                f"delete {records.path(repo_id)} to have it made"
            )
        if records is not None:
            records.begin(repo_id)
        hub.ensure_repo(repo_id, private=True)
        info = hub.model_info(repo_id)
    if _block(info) is None:
        if _names(info) - MADE_BY_HUB or not info.private:
            raise HubError(
                f"{repo_id} exists and hubquant did not make it, so nothing was changed; rename it or use another namespace"
            )
    elif (other := _metadata(info).get("base_model", report.base.repo_id)) != report.base.repo_id:
        raise HubError(
            f"{repo_id} holds the quantized {other}; nothing was changed; use another namespace for {report.base.repo_id}"
        )
    return info


def _find(hub: Hub, repo_id: str) -> ModelInfo | None:
    try:
        return hub.model_info(repo_id)
    except RepoGone:
        return None


def _names(info: ModelInfo) -> set[str]:
    return {sibling.rfilename for sibling in info.siblings or ()}


def _bring_up_to_date(hub: Hub, repo_id: str, report: Report, files: Sequence[File], info: ModelInfo) -> tuple[str, bool]:
    """The commit that holds the files, and whether it had to be made. Times and memory differ between two passes over the same
    base, so the card and the manifest alone are no reason for a commit."""
    head = info.sha or hub.head(repo_id)
    block = _block(info)
    made = [file for file in files if file.path not in ("README.md", manifest.NAME)]
    if block is not None and _same(block, report) and hub.holds(repo_id, head, made):
        return head, False
    gone = _outdated(hub, repo_id, head, files) if block is not None else []
    base = report.base
    message = (
        f"Quantized from {base.repo_id}{f' at {base.revision[:12]}' if base.revision else ''} by hubquant {report.hubquant_version}"
    )
    return hub.commit(repo_id, files, message, head, gone), True


def _same(block: dict[str, str], report: Report) -> bool:
    """Made of the same weights by the same recipe and version; the commit of the base may differ by its README."""
    return {**block, "source_sha": ""} == {**card.block_of(report), "source_sha": ""}


def _outdated(hub: Hub, repo_id: str, head: str, files: Sequence[File]) -> list[str]:
    """What an earlier manifest lists and this one does not. Files that a person added stay."""
    text = hub.read_text(repo_id, manifest.NAME, head)
    if text is None:
        return []
    try:
        earlier = Manifest.parse(text, repo_id).files
    except HubquantError:
        return []  # of another version: nothing is known to be ours
    return sorted((earlier.keys() - {file.path for file in files}) & hub.tree(repo_id, head).keys())


def _verify(hub: Hub, repo_id: str, commit: str, report: Report, files: Sequence[File]) -> None:
    """Reads back what a reader will get. Raises HubError; the repo is still private then, if it is new."""
    made = [file for file in files if file.path not in ("README.md", manifest.NAME)]
    if not hub.holds(repo_id, commit, made):
        raise HubError(f"{repo_id} at {commit[:12]} does not hold the files that were committed; it stays private; run it again")
    text = hub.read_text(repo_id, "README.md", commit) or ""
    if not _same(card.hubquant_block(text) or {}, report):
        raise HubError(f"the card of {repo_id} does not read back; it stays private; run it again")


def _text(files: Sequence[File], path: str) -> str:
    return next(file.source.decode() for file in files if file.path == path and isinstance(file.source, bytes))


def desired_state(hub: Hub, repo_id: str) -> dict[str, str] | None:
    """What the repo's card says of its making (source_sha, fingerprint, recipe, version); None without such a repo or card."""
    info = _find(hub, repo_id)
    return None if info is None else _block(info)


def leftovers(hub: Hub, namespace: str, records: Records | None = None) -> list[str]:
    """Private repos that hubquant created or filled and never finished, as far as their names, cards and the records tell."""
    listed = hub.list_models(author=namespace, full=True, cardData=True)
    return sorted(info.id for info in listed if info.private and _unfinished(info, records))


def _unfinished(info: ModelInfo, records: Records | None) -> bool:
    if records is not None and records.finished(info.id):
        return False
    ours = OURS.search(info.id) is not None or (records is not None and records.begun(info.id))
    return _block(info) is not None or (ours and not _names(info) - MADE_BY_HUB)


def _block(info: ModelInfo) -> dict[str, str] | None:
    return card.parse_block(_metadata(info))


def _metadata(info: ModelInfo) -> dict[str, Any]:
    return dict(info.card_data.to_dict()) if info.card_data else {}  # type: ignore[no-untyped-call]
