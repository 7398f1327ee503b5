"""Tab "Published": the account's repos as their manifests state them; the Hub is asked behind the page's back."""

import time
from collections.abc import Callable, Mapping

import pytest
from cached import Cached
from huggingface_hub import CommitOperationAdd, HfApi
from tabs import published
from tabs.published import Shelf

from hubquant.artifact import Artifact, Base, Evaluation, Protocol, Report
from hubquant.config import Settings
from hubquant.hub.client import Hub
from hubquant.hub.local.server import LocalHub
from hubquant.hub.manifest import Manifest
from hubquant.recipe import Recipe

PROTOCOL = Protocol(
    name="gptq-512",
    window=512,
    stride=512,
    bos="as tokenized",
    scored="all",
    text="prose-eval",
    text_sha256="e" * 64,
    n_tokens=16352,
)
CARD = b"---\nlicense: mit\ntags: [hubquant, quantized]\n---\n"
Publish = Callable[..., str]


def manifest(repo_id: str, *variants: str) -> bytes:
    report = Report(
        hubquant_version="0.1.0",
        versions={},
        base=Base(repo_id="demo-org/tiny", revision="a" * 40, fingerprint="f" * 64),
        recipe=Recipe(variants=variants),
        artifacts=tuple(
            Artifact(variant=name, folder=".", files={f"{name}.gguf": "0" * 64}, size_bytes=2_500_000, bits_per_weight=4.25)
            for name in variants
        ),
        evaluations=tuple(
            Evaluation(
                variant=name, protocol=PROTOCOL, perplexity=61.5, base_perplexity=60.0,
                mean_kl=0.0123, p99_kl=0.2, p999_kl=0.5, max_kl=1.25, top1_agreement=0.913,
            )
            for name in variants
        ),
    )  # fmt: skip
    return Manifest.of(report, repo_id, variants, {}).json_bytes()


@pytest.fixture
def put(local_hub: LocalHub) -> Publish:
    """put("demo-bot/name", {path: content}): a repo of the bot with a card as hubquant tags it."""
    bot = HfApi(endpoint=local_hub.url, token="hf_demo_bot")

    def publish(repo_id: str, files: Mapping[str, bytes], private: bool = False) -> str:
        bot.create_repo(repo_id, private=private, exist_ok=True)
        contents = {"README.md": CARD, **files}
        bot.create_commit(repo_id, [CommitOperationAdd(*item) for item in contents.items()], commit_message="Publish")
        return repo_id

    return publish


def test_every_public_variant_with_its_numbers_and_their_protocol(hub: Hub, put: Publish) -> None:
    put("demo-bot/tiny-GGUF", {"hubquant.json": manifest("demo-bot/tiny-GGUF", "gguf-q8_0", "gguf-q4_k_m")})
    put("demo-bot/tiny-AWQ", {"hubquant.json": manifest("demo-bot/tiny-AWQ", "awq-int4-g128")})
    put("demo-bot/hidden-AWQ", {"hubquant.json": manifest("demo-bot/hidden-AWQ", "awq-int4-g128")}, private=True)
    put("demo-bot/by-hand", {})
    found = Shelf(hub, "demo-bot").read()
    assert found.problems == ()
    (family,) = found.families
    rows = [(row.artifact.variant, row.repo_id) for row in family.rows]
    assert rows == [
        ("awq-int4-g128", "demo-bot/tiny-AWQ"),
        ("gguf-q8_0", "demo-bot/tiny-GGUF"),
        ("gguf-q4_k_m", "demo-bot/tiny-GGUF"),
    ]
    html = published.show(_known(found), hub.endpoint, "demo-bot")
    assert f'<a href="{hub.endpoint}/demo-bot/tiny-AWQ"' in html
    for figure in ("2.5 MB", "4.250", "61.500", "1.0250", "0.01230", "0.2000", "91.3 %"):
        assert html.count(f">{figure}<") == 3
    assert html.count("Measured under gptq-512: text prose-eval (sha256 eeeeeeeeeeee), windows of 512") == 1
    assert "hidden" not in html


def test_a_base_that_is_not_on_the_hub_is_no_link(hub: Hub) -> None:
    base = Base(repo_id="tiny", revision="", fingerprint="f" * 64)
    html = published.show(
        _known(published.Published(families=(published.Family(base=base, rows=()),), problems=())), hub.endpoint, "x"
    )
    assert "<h3>tiny</h3>" in html


def _known(value: published.Published) -> Cached[published.Published]:
    cached = Cached(lambda: value, seconds=60)
    cached.get(patience=10)
    return cached


def test_a_manifest_is_read_once_per_commit(hub: Hub, put: Publish, local_hub: LocalHub) -> None:
    shelf = Shelf(hub, "demo-bot")
    put("demo-bot/tiny-AWQ", {"hubquant.json": manifest("demo-bot/tiny-AWQ", "awq-int4-g128")})
    shelf.read()
    before = len(local_hub.requests)
    shelf.read()
    assert len(local_hub.requests) == before + 1, "the listing alone"
    put("demo-bot/tiny-AWQ", {"hubquant.json": manifest("demo-bot/tiny-AWQ", "gptq-int4-g128")})
    assert shelf.read().families[0].rows[0].artifact.variant == "gptq-int4-g128"


def test_a_damaged_manifest_is_a_sentence_and_hides_no_other(hub: Hub, put: Publish) -> None:
    put("demo-bot/a-AWQ", {"hubquant.json": b'{"<b>": 1}'})
    put("demo-bot/b-AWQ", {"hubquant.json": manifest("demo-bot/b-AWQ", "awq-int4-g128")})
    found = Shelf(hub, "demo-bot").read()
    assert [row.repo_id for family in found.families for row in family.rows] == ["demo-bot/b-AWQ"]
    (problem,) = found.problems
    assert "demo-bot/a-AWQ is not a manifest" in problem
    assert "demo-bot/a-AWQ is not a manifest" in published.show(_known(found), hub.endpoint, "demo-bot")


def test_the_page_never_waits_for_the_hub(hub: Hub, settings: Settings, put: Publish, local_hub: LocalHub) -> None:
    put("demo-bot/tiny-AWQ", {"hubquant.json": manifest("demo-bot/tiny-AWQ", "awq-int4-g128")})
    local_hub.faults.inject("^/api/models", "GET", status=503, delay_seconds=2.0)
    look = published.tab(hub, "demo-bot")
    started = time.monotonic()
    assert "Asking the Hub" in look()
    assert time.monotonic() - started < 1.0
    deadline = time.monotonic() + 20
    while "demo-bot/tiny-AWQ" not in look():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_hub_that_does_not_answer_is_a_sentence_beside_what_is_known(hub: Hub, put: Publish, local_hub: LocalHub) -> None:
    put("demo-bot/tiny-AWQ", {"hubquant.json": manifest("demo-bot/tiny-AWQ", "awq-int4-g128")})
    cached = Cached(Shelf(hub, "demo-bot").read, seconds=0)
    cached.get(patience=10)
    local_hub.faults.inject("^/api/models", status=503, times=99)
    cached.get(patience=10)
    html = published.show(cached, hub.endpoint, "demo-bot")
    assert "failed 2 times, last with HTTP 503" in html
    assert "demo-bot/tiny-AWQ" in html


def test_an_empty_shelf_says_so(hub: Hub) -> None:
    assert "Nothing public yet" in published.show(_known(Shelf(hub, "demo-bot").read()), hub.endpoint, "demo-bot")
