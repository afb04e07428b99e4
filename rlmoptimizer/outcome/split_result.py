"""Both programs on one split: the unchanged one, and the one that is given back. Imports no DSPy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rlmoptimizer.outcome.measured import ExampleScores, compare_scores

__all__ = ["SplitResult", "Verdict", "verdict_of"]

Verdict: TypeAlias = Literal["gain", "no proven gain", "loss"]
_MOST_CHANCE = 0.05  # p-values above it prove nothing


def verdict_of(interval: tuple[float, float] | None, p_value: float) -> Verdict:
    """A gain when the whole interval lies above 0 and the sign test agrees (p <= 0.05); a loss is the mirror."""
    if interval is None or p_value > _MOST_CHANCE:
        return "no proven gain"
    low, high = interval
    return "gain" if low > 0 else "loss" if high < 0 else "no proven gain"


@dataclass(frozen=True, slots=True)
class SplitResult:
    """The unchanged program and the one that is given back, on the same examples of one split.

    Scores are 0 to 100, differences are in points of them.
    """

    n: int  # examples for which both have a score; 0: baseline, result and difference are None
    baseline: float | None
    result: float | None
    difference: float | None  # result - baseline
    interval: tuple[float, float] | None  # 95% of the difference: (low, high); None below two examples
    better: int  # examples whose score rose
    worse: int  # examples whose score fell
    same: int
    p_value: float  # exact two-sided sign test of better and worse
    left_out: int  # examples of the split without a score of both

    @classmethod
    def of(cls, before: ExampleScores, after: ExampleScores, examples: int) -> SplitResult:
        """Of the scores of both programs on a split of so many examples."""
        paired = compare_scores(before, after)
        return cls(
            n=paired.n,
            baseline=_points(paired.before),
            result=_points(paired.after),
            difference=_points(paired.difference),
            interval=None if paired.interval is None else (100 * paired.interval[0], 100 * paired.interval[1]),
            better=paired.better,
            worse=paired.worse,
            same=paired.same,
            p_value=paired.p_value,
            left_out=examples - paired.n,
        )

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.interval, self.p_value)

    @property
    def text(self) -> str:
        """In words."""
        if self.baseline is None or self.result is None or self.difference is None:
            return "not compared: no example has a score with the old and with the new prompts"
        scores = f"{self.baseline:.1f} -> {self.result:.1f}, {self.difference:+.1f} points"
        if self.interval is None:
            return f"{scores} on one example"
        low, high = self.interval
        return (
            f"{scores} on {self.n} examples (95% interval {low:+.1f} to {high:+.1f}; {self.better} better, "
            f"{self.worse} worse; p = {self.p_value:.2g})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields and the verdict, as JSON holds them."""
        interval = None if self.interval is None else list(self.interval)
        return {**asdict(self), "interval": interval, "verdict": self.verdict}


def _points(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
