import re

import pytest
from pydantic import ValidationError

from hubquant.errors import UsageError
from hubquant.recipe import (
    BITS,
    DEFAULT_VARIANTS,
    GROUP_SIZES,
    KNOWN_VARIANTS,
    OFFERED_VARIANTS,
    QUALITY_LIMITS,
    ROW,
    VARIANTS,
    Override,
    Recipe,
    override,
    variant,
)


def test_names_are_keys_and_say_what_is_made() -> None:
    for name, made in VARIANTS.items():
        assert made.name == name and name.startswith(made.format)
        assert made.bits in QUALITY_LIMITS
        assert bool(made.mixture) == (made.format == "gguf") and bool(made.group_size) == (made.format != "gguf")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("awq", "did you mean awq-int4-g128?"),
        ("Q4_K_M", "did you mean gguf-q4_k_m?"),
        ("gguf-q4km", "did you mean gguf-q4_k_m or gguf-q5_k_m or gguf-q4_k_s?"),
        ("gptq-int3", "did you mean gptq-int3-g128 or gptq-int3-g128-asym or gptq-int3-g128-actorder?"),
        ("gguf-auto@abc", "did you mean gguf-auto@4.5bpw?"),
        ("nvfp4", f"there are {KNOWN_VARIANTS}"),
        ("", f"there are {KNOWN_VARIANTS}"),
    ],
)
def test_a_miss_names_what_may_have_been_meant(name: str, advice: str) -> None:
    with pytest.raises(UsageError, match=f"^unknown variant {re.escape(repr(name))}; {re.escape(advice)}$"):
        variant(name)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("gguf-auto@12", "gguf-auto@12bpw (bits per weight), gguf-auto@12MB or gguf-auto@12GB"),
        ("gguf-q4_k_m,gguf-q8_0", "one variant at a time"),
    ],
)
def test_a_name_that_is_nearly_right_is_told_what_it_lacks(name: str, advice: str) -> None:
    with pytest.raises(UsageError, match=re.escape(advice)):
        variant(name)


def test_what_is_offered_is_known_and_few() -> None:
    assert [variant(name).name for name in OFFERED_VARIANTS] == list(OFFERED_VARIANTS)
    assert set(DEFAULT_VARIANTS) < set(OFFERED_VARIANTS) and len(OFFERED_VARIANTS) <= 12


def test_repo_suffixes() -> None:
    assert [VARIANTS[n].repo_suffix for n in DEFAULT_VARIANTS] == ["GPTQ-Int4", "AWQ", "GGUF", "GGUF", "GGUF"]


def test_the_hash_depends_on_every_value_and_on_nothing_else() -> None:
    assert Recipe().sha256 == Recipe.model_validate_json(Recipe().model_dump_json()).sha256
    assert Recipe().sha256 != Recipe(variants=("gguf-q8_0",)).sha256
    stricter = {**QUALITY_LIMITS, 4: QUALITY_LIMITS[4].model_copy(update={"mean_kl": 0.1})}
    assert Recipe().sha256 != Recipe(limits=stricter).sha256


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate({"variant": ["gguf-q8_0"]})


def test_a_recipe_holds_known_variants_once() -> None:
    assert Recipe(variants=("gguf-q8_0", "gguf-q8_0")).variants == ("gguf-q8_0",)
    with pytest.raises(UsageError, match="unknown variant 'gguf-q9'"):
        Recipe(variants=("gguf-q9",))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [*GROUP_SIZES, ROW])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_gptq_is_a_variant_by_its_name(bits: int, group_size: int, symmetric: bool) -> None:
    group = "row" if group_size == ROW else f"g{group_size}"
    made = variant(f"gptq-int{bits}-{group}{'' if symmetric else '-asym'}")
    assert variant(made.name) == made
    assert (made.format, made.bits, made.group_size, made.symmetric) == ("gptq", bits, group_size, symmetric)


def test_the_rest_of_the_grammar() -> None:
    assert variant("awq-int4-g64") == variant("awq-int4-g64-asym")
    assert (variant("awq-int4-row").group_size, variant("awq-int4-row").symmetric) == (ROW, False)
    assert variant("gptq-int4-g128-sym") is VARIANTS["gptq-int4-g128"]
    made = variant("gptq-int3-g32-head-actorder-asym")  # in any order, and always called the same
    assert (made.name, made.order, made.head) == ("gptq-int3-g32-asym-actorder-head", "actorder", True)
    assert variant("gptq-int4-g128-static").order == "static"
    big = variant("gguf-auto@3.2GB")
    assert (big.name, big.size_bytes, big.bits) == ("gguf-auto@3.2GB", 3_200_000_000, 0)
    assert variant("gguf-auto@50MB").size_bytes == 50_000_000


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("awq-int3-g128", "AWQ's layout holds 4 bits with zero points, and no more; take gptq-int3-g128"),
        ("awq-int4-g128-sym", "AWQ's layout holds 4 bits"),
        ("awq-int4-g128-actorder", "AWQ's layout holds 4 bits"),
        ("gptq-int5-g128", "5 bits are not packed; there are 2, 3, 4, 8"),
        ("gptq-int4-g48", "no groups of 48; there are 32, 64, 128, or -row for -g48"),
        ("gptq-int4-g32-sym-asym", "it is either asym or sym"),
        ("gptq-int4-g32-static-actorder", "it is either actorder or static"),
        ("gptq-int4-row-actorder", "a whole row is one group"),
    ],
)
def test_what_no_file_can_hold_is_declined_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(name)}: {re.escape(reason)}"):
        variant(name)


def test_no_two_variants_meet_in_one_repo() -> None:
    groups = ("g32", "g64", "g128", "row")
    packed = [f"gptq-int{b}-{g}{a}{h}" for b in BITS for g in groups for a in ("", "-asym") for h in ("", "-head")]
    packed += [f"gptq-int4-g128{o}" for o in ("-static", "-actorder", "-asym-actorder")] + [f"awq-int4-{g}" for g in groups]
    suffixes = [variant(name).repo_suffix for name in packed]
    assert len(set(suffixes)) == len(packed)
    expected = {
        "gptq-int4-g128": "GPTQ-Int4", "gptq-int4-g32": "GPTQ-Int4-g32", "gptq-int8-row": "GPTQ-Int8-row",
        "gptq-int4-g128-asym-actorder": "GPTQ-Int4-asym-actorder", "awq-int4-g128": "AWQ", "awq-int4-g64": "AWQ-g64",
    }  # fmt: skip
    assert {name: variant(name).repo_suffix for name in expected} == expected


def test_overrides_are_said_in_the_words_of_variants() -> None:
    assert override(r".*\.down_proj=int8-g64") == Override(pattern=r".*\.down_proj", bits=8, group_size=64)
    assert override("a(?=b)=int4-row-asym") == Override(pattern="a(?=b)", bits=4, group_size=ROW, symmetric=False)
    assert override("model.layers.0=16").bits == 0
    assert Recipe(dynamic=("x=int8-g64",)).sha256 != Recipe().sha256


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("down_proj", "is not of the form"),
        ("=int8-g64", "is not of the form"),
        ("(=int8-g64", "is no regular expression"),
        ("x=int5-g64", "5 bits are not packed"),
        ("x=8", "unknown variant 'gptq-8'"),
        ("x=int4-g64-actorder", "is no setting of one module"),
    ],
)
def test_what_is_no_override_is_named(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Recipe(dynamic=(text,))
