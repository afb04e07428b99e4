"""The rule of choice: a submission gives way only to what is better beyond chance."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.comparison import compare
from rlmoptimizer.outcome.choice import rival_of
from rlmoptimizer.outcome.measured import best_candidate, mean_score

EXAMPLES = 8
score = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def scores(of: list[float]) -> dict[str, float]:
    return {str(place): one for place, one in enumerate(of, start=1)}


whole = st.lists(score, min_size=EXAMPLES, max_size=EXAMPLES).map(scores)
partial = st.dictionaries(st.sampled_from([str(place) for place in range(1, EXAMPLES + 1)]), score)
measurements = st.dictionaries(st.sampled_from("abcdef"), whole | partial)


def replacement(measured: Mapping[str, Mapping[str, float]], submitted: str) -> str | None:
    rival = rival_of(measured, submitted, EXAMPLES)
    return rival.candidate if rival is not None and rival.replaces_submission else None


@given(measurements.filter(bool), st.data())
def test_what_replaces_a_submission_is_the_best_of_all_and_better_than_it_beyond_chance(
    measured: Mapping[str, Mapping[str, float]], data: st.DataObject
) -> None:
    submitted = data.draw(st.sampled_from(sorted(measured)))
    chosen = replacement(measured, submitted)
    if chosen is None:
        return
    assert chosen != submitted
    means = [mean for one in measured.values() if (mean := mean_score(one, EXAMPLES)) is not None]
    assert mean_score(measured[chosen], EXAMPLES) == max(means)
    shared = [one for one in measured[submitted] if one in measured[chosen]]
    found = compare([measured[chosen][one] for one in shared], [measured[submitted][one] for one in shared])
    assert found.interval is not None
    assert found.interval[1] < 0


@given(measurements, whole)
def test_a_submission_that_scores_as_well_as_the_best_is_given_back(
    measured: dict[str, Mapping[str, float]], best: Mapping[str, float]
) -> None:
    top = {**measured, "submitted": {one: 1.0 for one in best}}
    assert replacement(top, "submitted") is None


@given(whole, st.integers(0, EXAMPLES))
def test_only_clear_differences_replace_a_submission(good: dict[str, float], lost: int) -> None:
    good = dict.fromkeys(good, 1.0)
    submitted = {**good, **dict.fromkeys(list(good)[:lost], 0.0)}
    chosen = replacement({"good": good, "submitted": submitted}, "submitted")
    # With one or two of eight the resampled difference is 0 in more than 2.5% of the draws.
    assert (chosen is None) if lost <= 2 else (chosen == "good") if lost >= 4 else True


def test_the_best_is_the_first_of_equals_and_has_a_score_on_every_example() -> None:
    first, second, partly = scores([1.0] * 4), scores([1.0] * 4), scores([1.0] * 3)
    assert best_candidate({"partly": partly, "first": first, "second": second}, 4) == "first"
    assert best_candidate({"partly": partly}, 4) is None
    assert mean_score({}, 0) is None
