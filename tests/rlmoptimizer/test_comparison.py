"""The statistics of scores: against brute force, known values, and the laws that they keep."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmoptimizer.comparison import compare, mean_interval

SCORES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=12)


def sides(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [old for old, _ in pairs], [new for _, new in pairs]


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_the_numbers_of_a_comparison_are_those_of_its_pairs(pairs: list[tuple[float, float]]) -> None:
    before, after = sides(pairs)
    found = compare(before, after)
    assert found.n == len(pairs) == found.better + found.worse + found.same
    assert found.before == pytest.approx(mean(before))
    assert found.after == pytest.approx(mean(after))
    assert found.difference == pytest.approx(mean(after) - mean(before))
    assert found.better == sum(new - old > 5e-10 for old, new in pairs)
    assert found.worse == sum(old - new > 5e-10 for old, new in pairs)
    differences = [new - old for old, new in pairs]
    assert found.interval is not None
    low, high = found.interval
    assert min(differences) - 1e-8 <= low <= high <= max(differences) + 1e-8


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.randoms(use_true_random=False))
def test_neither_the_order_nor_the_side_matters(pairs: list[tuple[float, float]], rng: random.Random) -> None:
    found = compare(*sides(pairs))
    mirrored = compare(*reversed(sides(pairs)))
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    assert compare(*sides(shuffled)).interval == found.interval
    assert found.interval is not None
    assert mirrored.interval == (-found.interval[1], -found.interval[0])
    assert (mirrored.better, mirrored.worse, mirrored.p_value) == (found.worse, found.better, found.p_value)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=2, max_size=5))
def test_the_interval_is_that_of_all_resamples(differences: list[float]) -> None:
    """Every resample that there is, n to the power of n of them, against 10,000 drawn ones."""
    n = len(differences)
    every = sorted(sum(one) / n for one in itertools.product(differences, repeat=n))
    found = compare([0.0] * n, differences).interval
    assert found is not None
    for bound, share in zip(found, (0.025, 0.975), strict=True):
        below, above = every[int((share - 0.01) * len(every))], every[math.ceil((share + 0.01) * len(every)) - 1]
        assert below - 1e-9 <= bound <= above + 1e-9


def test_the_draws_are_those_of_the_standard_library() -> None:
    rng = random.Random(7)
    before = [rng.choice([0.0, 1.0]) for _ in range(30)]
    after = [rng.choice([0.0, 0.5, 1.0]) for _ in range(30)]
    differences = sorted(new - old for old, new in zip(before, after, strict=True))
    assert differences > sorted(-one for one in differences)
    draws = random.Random(3)
    means: list[float] = []
    for _ in range(10_000):
        words = [int.from_bytes(draws.randbytes(4), "little") for _ in differences]
        means.append(sum(differences[word * 30 >> 32] for word in words) / 30)
    means.sort()
    assert compare(before, after, seed=3).interval == (means[249], means[9750])
    assert compare(before, after, seed=4).interval != (means[249], means[9750])


def test_known_values() -> None:
    """They must never change, on any platform: reports of different machines are compared."""
    before = [0.0] * 12 + [1.0] * 8
    after = [1.0] * 9 + [0.0] * 3 + [1.0] * 6 + [0.0] * 2
    found = compare(before, after)
    assert (found.better, found.worse, found.same) == (9, 2, 9)
    assert (found.before, found.after, found.difference) == (0.4, 0.75, 0.35)
    assert found.interval == (0.05, 0.65)
    assert found.p_value == 134 / 2048  # 2 * (C(11,0) + C(11,1) + C(11,2)) / 2**11
    assert compare([0.1] * 6, [0.4] * 6).interval == pytest.approx((0.3, 0.3))
    assert compare([0.0] * 6, [1.0] * 6).p_value == 2 / 64


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_test_counts_coin_tosses(better: int, worse: int) -> None:
    found = compare([0.0] * better + [1.0] * worse, [1.0] * better + [0.0] * worse)
    tossed, least = better + worse, min(better, worse)
    uneven = sum(math.comb(tossed, k) for k in range(tossed + 1) if min(k, tossed - k) <= least)
    assert found.p_value == pytest.approx(uneven / 2**tossed)


def test_no_example_and_one_example() -> None:
    none, one = compare([], []), compare([0.25], [1.0])
    assert (none.n, none.before, none.after, none.difference, none.interval) == (0, None, None, None, None)
    assert (none.better, none.worse, none.same, none.p_value) == (0, 0, 0, 1.0)
    assert (one.n, one.before, one.after, one.difference, one.interval) == (1, 0.25, 1.0, 0.75, None)
    assert (one.better, one.worse, one.same, one.p_value) == (1, 0, 0, 1.0)


def test_a_difference_of_rounding_is_none() -> None:
    found = compare([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert (found.better, found.worse, found.same, found.interval) == (0, 0, 2, (0.0, 0.0))


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare([0.0, 1.0], [1.0])


def test_thousands_of_different_scores_take_no_second() -> None:
    rng = random.Random(1)
    before, after = [rng.random() for _ in range(5000)], [rng.random() for _ in range(5000)]
    compare(before[:2], after[:2])  # numpy is imported
    began = time.process_time()
    compare(before, after)
    assert time.process_time() - began < 2  # half a second on a machine that does nothing else


def test_a_plain_import_does_not_load_numpy() -> None:
    code = "import sys, rlmoptimizer, rlmoptimizer.comparison; print({'numpy', 'dspy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


@pytest.mark.parametrize(
    ("passed", "n", "low", "high"),
    [
        (25, 40, 0.4703, 0.7578),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 2, 0.0945, 0.9055),
        (0, 1, 0.0, 0.7935),
    ],
)
def test_the_interval_of_passed_and_failed_examples_is_wilsons(passed: int, n: int, low: float, high: float) -> None:
    found = mean_interval([1.0] * passed + [0.0] * (n - passed))
    assert found == pytest.approx((low, high), abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_interval_of_a_mean_holds_it_and_is_never_wider_than_a_coins(scores: list[float]) -> None:
    found = mean_interval(scores)
    assert found is not None
    low, high = found
    middle = sum(scores) / len(scores)
    assert 0 <= low <= middle + 1e-9
    assert middle - 1e-9 <= high <= 1
    n, z = len(scores), 1.959963984540054
    wilson = z / (1 + z * z / n) * math.sqrt(middle * (1 - middle) / n + z * z / (4 * n * n))
    assert (high - low) / 2 <= wilson + 1e-9


def test_scores_that_vary_little_have_a_narrow_interval_and_no_scores_have_none() -> None:
    narrow = mean_interval([0.48, 0.52] * 20)
    assert narrow is not None
    assert 0.45 < narrow[0] < 0.48
    assert 0.52 < narrow[1] < 0.55
    assert mean_interval([]) is None
    alone = mean_interval([0.5])
    assert alone is not None
    assert alone[1] - alone[0] > 0.5  # one score is no certainty


@pytest.mark.parametrize(
    ("truth", "draw"),
    [
        (0.7, lambda rng: float(rng.random() < 0.7)),
        (0.5, lambda rng: rng.random()),
        (0.5, lambda rng: rng.choice([0.0, 0.5, 1.0])),
    ],
)
def test_the_interval_covers_the_true_mean_as_often_as_it_says(
    truth: float, draw: Callable[[random.Random], float]
) -> None:
    rng = random.Random(0)
    found = [mean_interval([draw(rng) for _ in range(30)]) for _ in range(1000)]
    covered = sum(one is not None and one[0] <= truth <= one[1] for one in found)
    assert 925 <= covered <= 985
