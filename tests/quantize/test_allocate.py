"""Against trying every combination."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubquant.quantize.allocate import Candidate, allocate, hull, smallest

Sizes = dict[str, list[Candidate]]
candidate = st.builds(Candidate, st.just("Q"), st.integers(1, 40), st.floats(0, 1, allow_subnormal=False))
tensors = st.dictionaries(st.sampled_from("abcd"), st.lists(candidate, min_size=1, max_size=4), min_size=1)


def total(chosen: dict[str, Candidate]) -> tuple[int, float]:
    return sum(c.size for c in chosen.values()), sum(c.error for c in chosen.values())


@given(tensors, st.integers(0, 120))
def test_the_budget_holds_and_the_error_is_within_one_tensor_of_the_least(candidates: Sizes, spare: int) -> None:
    budget = smallest(candidates) + spare
    size, error = total(allocate(candidates, budget))
    assert size <= budget
    choices = (dict(zip(candidates, combination, strict=True)) for combination in product(*candidates.values()))
    least = min(e for s, e in map(total, choices) if s <= budget)
    # Lagrange's bound: the steps that did not fit are of one price at the most beyond, one step of one tensor
    largest_step = max(own[0].error - own[-1].error for own in map(hull, candidates.values()))
    assert error <= least + largest_step + 1e-9


@given(tensors)
def test_with_room_for_all_every_tensor_gets_its_best(candidates: Sizes) -> None:
    chosen = allocate(candidates, sum(max(c.size for c in own) for own in candidates.values()))
    assert all(chosen[name].error == min(c.error for c in own) for name, own in candidates.items())


@given(tensors)
def test_with_room_for_none_every_tensor_gets_its_smallest(candidates: Sizes) -> None:
    chosen = allocate(candidates, smallest(candidates))
    assert all(chosen[name].size == min(c.size for c in own) for name, own in candidates.items())


def test_the_hull_leaves_out_what_no_price_makes_best() -> None:
    a, above, b, worse, c = (Candidate(k, s, e) for k, s, e in (("a", 1, 9), ("u", 2, 8), ("b", 3, 3), ("w", 4, 5), ("c", 5, 2)))
    assert hull([c, worse, a, b, above]) == [a, b, c]


def test_bytes_go_where_they_take_off_most() -> None:
    candidates = {
        "matters": [Candidate("Q4", 40, 10.0), Candidate("Q8", 80, 1.0)],
        "does not": [Candidate("Q4", 40, 0.2), Candidate("Q8", 80, 0.1)],
    }
    chosen = allocate(candidates, 130)
    assert {name: c.kind for name, c in chosen.items()} == {"matters": "Q8", "does not": "Q4"}


def test_a_budget_below_the_smallest_is_refused() -> None:
    with pytest.raises(ValueError, match="40 bytes, the budget is 39"):
        allocate({"a": [Candidate("Q4", 40, 1.0)]}, 39)
