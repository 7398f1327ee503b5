import re

import pytest
from pydantic import ValidationError

from hubquant.errors import UsageError
from hubquant.recipe import DEFAULT_VARIANTS, KNOWN_VARIANTS, OFFERED_VARIANTS, QUALITY_LIMITS, VARIANTS, Recipe, variant


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
        ("gguf-auto@abc", "did you mean gguf-auto@4.5bpw?"),
        ("gguf-auto@4.5", "did you mean gguf-auto@4.5bpw?"),
        ("nvfp4", f"there are {KNOWN_VARIANTS}"),
        ("", f"there are {KNOWN_VARIANTS}"),
    ],
)
def test_a_miss_names_what_may_have_been_meant(name: str, advice: str) -> None:
    with pytest.raises(UsageError, match=f"^unknown variant {re.escape(repr(name))}; {re.escape(advice)}$"):
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
