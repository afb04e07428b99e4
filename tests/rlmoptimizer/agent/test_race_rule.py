"""The rule of a race: its rounds, and who leaves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmoptimizer.agent.race_rule import leavers, level, ranked, round_ends


@pytest.mark.parametrize(
    ("examples", "ends"),
    [(1, (1,)), (8, (8,)), (11, (11,)), (12, (8, 12)), (16, (8, 16)), (19, (8, 19)), (20, (8, 16, 20)),
     (40, (8, 16, 32, 40)), (100, (8, 16, 32, 64, 100))],
)  # fmt: skip
def test_rounds_double_what_was_run(examples: int, ends: tuple[int, ...]) -> None:
    assert round_ends(examples) == ends


@given(st.integers(1, 10_000))
def test_rounds_grow_and_end_with_the_last_example(examples: int) -> None:
    ends = round_ends(examples)
    sizes = [end - begin for begin, end in zip((0, *ends), ends, strict=False)]
    assert ends[-1] == examples
    assert all(size > 0 for size in sizes)
    assert len(ends) <= 12


def scores(*values: float) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values)}


def test_a_candidate_leaves_when_it_is_beaten_beyond_doubt() -> None:
    best, seven, eight = scores(*[1.0] * 20), scores(*[0.0] * 7, *[1.0] * 13), scores(*[0.0] * 8, *[1.0] * 12)
    assert leavers({0: best, 1: seven, 2: eight}, 1, 100, 1 / 250) == (2,)  # 1/128 and 1/256
    assert leavers({0: seven, 1: best, 2: eight}, 2, 100, 1 / 250) == ()  # the second best is hardly better than it
    assert leavers({0: eight, 1: best, 2: best}, 2, 100, 1 / 250) == (0,)


def test_a_higher_mean_never_leaves_though_it_is_worse_on_more_examples() -> None:
    often, much = scores(*[0.51] * 15, 0.0), scores(*[0.5] * 15, 1.0)
    assert ranked({0: often, 1: much}) == [1, 0]
    assert leavers({0: often, 1: much}, 1, 100, 0.05) == ()


def test_a_candidate_that_cannot_catch_up_any_more_leaves() -> None:
    ahead, behind = scores(1, 1, 1, 1), scores(0, 0, 1, 1)
    assert leavers({0: behind, 1: ahead}, 1, 1, 0.0) == (0,)
    assert leavers({0: behind, 1: ahead}, 1, 2, 0.0) == ()  # it could be as good, and comes first
    assert leavers({0: scores(0, 0), 1: ahead}, 1, 1, 0.0) == ()  # nobody knows what its other examples would give


def test_candidates_without_a_verdict_stay() -> None:
    assert ranked({0: {}, 1: scores(0.0), 2: scores(1.0)}) == [2, 1, 0]
    assert leavers({0: {}, 1: scores(*[1.0] * 30)}, 1, 5, 0.05) == ()
    assert leavers({0: {}, 1: {}}, 1, 5, 0.05) == ()


@settings(max_examples=100)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=12, max_size=12), min_size=2, max_size=5),
       st.integers(1, 4), st.integers(0, 20))  # fmt: skip
def test_those_to_be_kept_and_the_best_never_leave(values: list[list[float]], keep: int, rest: int) -> None:
    field = {number: scores(*one) for number, one in enumerate(values)}
    keep = min(keep, len(field) - 1)
    gone = leavers(field, keep, rest, 0.05)
    assert set(gone).isdisjoint(ranked(field)[:keep])
    assert set(leavers(field, keep, rest, 0.01)) <= set(gone)
    assert set(leavers(field, keep, rest + 1, 0.05)) <= set(gone)


def test_the_best_candidate_leaves_by_chance_in_at_most_a_twentieth_of_races() -> None:
    rng = random.Random(0)
    ends, lost = round_ends(64), 0
    for _ in range(600):
        field: dict[int, dict[str, float]] = {one: {} for one in range(5)}  # equally good: any of them may be the best
        begin = 0
        for end in ends[:-1]:
            for own in field.values():
                own.update((str(at), float(rng.random() < 0.5)) for at in range(begin, end))
            begin = end
            gone = leavers(field, 1, 10**6, level(len(ends) - 1, 5))
            lost += 0 in gone
            for one in gone:
                del field[one]
            if 0 not in field:
                break
    assert lost <= 600 * 0.05
