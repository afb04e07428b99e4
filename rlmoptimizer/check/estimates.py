"""What a compile may take, going by a few examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlmoptimizer.check.report import Estimate, ExampleTried
from rlmoptimizer.records import RoleUsage, dollars
from rlmoptimizer.text import usd_text

__all__ = ["cost_messages", "estimated"]


def estimated(examples: int, tried: Sequence[ExampleTried], usage: RoleUsage, threads: int) -> Estimate | None:
    """What so many evaluations take as if nothing came from DSPy's cache; `usage` is of those that were tried.

    None: none of them had a verdict.
    """
    judged = [one for one in tried if one.score is not None]
    if not judged or not examples:
        return None
    times = examples / len(judged)
    asked = usage.calls - usage.cached_calls
    reported = asked - usage.unreported_calls
    of_tokens = times * usage.calls / reported if reported else None
    of_cost = times * usage.calls / usage.priced_calls if usage.priced_calls else None
    return Estimate(
        examples,
        calls=round(times * usage.calls),
        prompt_tokens=None if of_tokens is None else round(of_tokens * usage.prompt_tokens),
        completion_tokens=None if of_tokens is None else round(of_tokens * usage.completion_tokens),
        cost_usd=None if of_cost is None else dollars(round(of_cost * usage.cost)),
        seconds=None if usage.cached_calls else _seconds(examples, judged, threads),
    )


def _seconds(examples: int, judged: Sequence[ExampleTried], threads: int) -> float:
    each = math.fsum(one.seconds for one in judged) / len(judged)
    return each * math.ceil(examples / threads)


def cost_messages(
    limit_usd: float | None, baseline: Estimate | None, at_most: Estimate | None
) -> tuple[list[str], list[str]]:
    """Problems and warnings of `max_cost_usd`; None: there is none."""
    first = None if baseline is None else baseline.cost_usd
    every = None if at_most is None else at_most.cost_usd
    if limit_usd is None or first is None or every is None:
        return [], []
    limit = f"max_cost_usd={limit_usd:g}"
    if first > limit_usd:
        return [f"{limit} does not pay for the baseline, which may cost {usd_text(first)}; raise it"], []
    if every > limit_usd:
        return [], [f"{limit} may end the work before its units do: all evaluations may cost {usd_text(every)}"]
    return [], []
