"""Statistics of scores: two prompts on the same examples, and one mean with its interval. Knows no store and no dspy.

The same scores give the same numbers on every platform and release of Python: the seeded draws are those of
`random.Random`, and what is added up are integers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

__all__ = ["Comparison", "compare", "direction", "mean_interval", "prepare_comparisons", "sign_test"]

_RESAMPLES: Final = 10_000
_LOWEST: Final = 249  # of the sorted resamples: 2.5% lie at or below it, and as many at or above its mirror image
_UNITS: Final = 10**9  # of a score of 1. Differences are whole units: a smaller one is rounding
_DRAWS_AT_ONCE: Final = 1 << 15  # a block that fits a processor's cache
_Z95: Final = 1.959963984540054  # between its negative and itself lie 95% of a normal distribution


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two lists of scores of the same examples, paired. Scores are fractions, 0..1.

    Without examples, `before`, `after`, `difference` and `interval` are None. With one, `interval` is None: one pair
    does not say how much pairs vary.
    """

    n: int  # examples
    before: float | None  # mean score
    after: float | None
    difference: float | None  # after - before
    interval: tuple[float, float] | None  # 95% of the difference: (low, high)
    better: int  # examples whose score rose
    worse: int  # examples whose score fell
    same: int
    p_value: float  # of the two-sided sign test on better and worse; 1.0 where nothing differs


def compare(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Comparison:
    """Compare the scores of the same examples before and after; `before[i]` and `after[i]` are of one example.

    The interval is a paired percentile bootstrap of the mean difference, with 10,000 resamples. It depends neither on
    the order of the examples nor on which side is which (exchanged sides give the mirrored interval). Differences below
    1e-9 count as none. Takes about half a second for 5,000 examples.
    Raises: ValueError for lists of different lengths.
    """
    n = len(before)
    units = [round((new - old) * _UNITS) for old, new in zip(before, after, strict=True)]
    better = sum(unit > 0 for unit in units)
    worse = sum(unit < 0 for unit in units)
    return Comparison(
        n=n,
        before=math.fsum(before) / n if n else None,
        after=math.fsum(after) / n if n else None,
        difference=math.fsum(new - old for old, new in zip(before, after, strict=True)) / n if n else None,
        interval=_bootstrap(units, seed) if n > 1 else None,
        better=better,
        worse=worse,
        same=n - better - worse,
        p_value=sign_test(better, worse),
    )


def prepare_comparisons() -> None:
    """Import what `compare` needs: 0.1 s that a program may have to spare before it compares."""
    import_module("numpy")


def direction(before: float, after: float) -> int:
    """1: a score rose, -1: it fell, 0: neither, where a difference below 1e-9 counts as none."""
    unit = round((after - before) * _UNITS)
    return (unit > 0) - (unit < 0)


def mean_interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of the mean of scores, (low, high) in 0..1; None without scores.

    It is Wilson's score interval. Scores between 0 and 1 vary less than a coin with the same mean; the interval then
    is the one of as many more examples as they vary less. One score of the greatest variance is counted among them, so
    that a few equal scores do not pass for certainty.
    """
    n = len(scores)
    if not n:
        return None
    mean = min(max(math.fsum(scores) / n, 0.0), 1.0)
    most = mean * (1 - mean)  # the variance of zeros and ones with this mean: none is greater
    variance = (math.fsum((score - mean) ** 2 for score in scores) + most) / (n + 1)
    size = n * most / variance if 0 < variance < most else n
    squared = _Z95**2
    middle = (mean + squared / (2 * size)) / (1 + squared / size)
    half = _Z95 * math.sqrt(most / size + squared / (4 * size**2)) / (1 + squared / size)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _bootstrap(units: list[int], seed: int) -> tuple[float, float]:
    import numpy  # 0.1 s that a plain import of the package must not take

    # Of the two mirror images always the same one is drawn from, in order.
    ordered, mirrored = sorted(units), sorted(-unit for unit in units)
    is_mirrored = mirrored > ordered
    values = numpy.array(mirrored if is_mirrored else ordered, dtype=numpy.int64)
    n = len(units)
    rng = random.Random(seed)
    rows = max(_DRAWS_AT_ONCE // n, 1)
    sums: list[int] = []
    for begin in range(0, _RESAMPLES, rows):
        count = min(rows, _RESAMPLES - begin)
        drawn = numpy.frombuffer(rng.randbytes(4 * n * count), dtype="<u4").astype(numpy.uint64)
        chosen = (drawn * numpy.uint64(n)) >> numpy.uint64(32)  # from 32 random bits to 0..n-1
        sums += numpy.sum(numpy.reshape(values[chosen.astype(numpy.intp)], (count, n)), axis=1).tolist()
    sums.sort()
    low, high = sums[_LOWEST] / (n * _UNITS), sums[-1 - _LOWEST] / (n * _UNITS)
    return (-high, -low) if is_mirrored else (low, high)


def sign_test(better: int, worse: int) -> float:
    """The probability that so many fair coins, better + worse, split as unevenly as this or more so; exact."""
    tossed = better + worse
    ways, tail = 1, 0
    for heads in range(min(better, worse) + 1):
        tail += ways
        ways = ways * (tossed - heads) // (heads + 1)
    return min(2 * tail / 2**tossed, 1.0)
