"""Two runs compared on the examples that both have a verdict for: what `compare_runs` answers.

Of two runs on val only totals are told. The counts of better and worse examples say how the two overlap, which their
scores do not; but not which examples these are, and a run on val is paid whole, so few pairs can be compared. The
interval and the p-value follow from the same counts. To withhold them would leave the agent to take noise for a gain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rlmoptimizer.agent.request_reader import ended_run
from rlmoptimizer.comparison import Comparison, compare, direction
from rlmoptimizer.errors import SelectionError
from rlmoptimizer.outcome.run_totals import percent
from rlmoptimizer.records import ExampleResult, RunRecord, StepTrace, mean
from rlmoptimizer.store.json_text import encode
from rlmoptimizer.store.run_store import RunStore

__all__ = ["compared_runs", "comparison_text", "first_changed_step"]

_AT_ONCE: Final = 200  # examples whose steps are held in memory
_SIGNIFICANT: Final = 0.05


def compared_runs(store: RunStore, run_a: Any, run_b: Any) -> dict[str, Any]:
    """What `compare_runs` returns; differences are b - a. Raises the `AgentError` for what the agent may not see."""
    a, b = ended_run(store, run_a), ended_run(store, run_b)
    if a.split != b.split:
        raise SelectionError(
            f"run {a.run_id} is on {a.split} and run {b.run_id} on {b.split}; only runs on the same split have "
            "examples in common"
        )
    before, after = _means(store, a), _means(store, b)
    common = [example_id for example_id in before if example_id in after]
    found = compare([before[one] for one in common], [after[one] for one in common])
    return {
        "run_a": a.run_id,
        "run_b": b.run_id,
        "split": a.split,
        "n": found.n,
        "score_a": percent(found.before),
        "score_b": percent(found.after),
        "difference": percent(found.difference),
        "interval": None if found.interval is None else [percent(bound) for bound in found.interval],
        "better": found.better,
        "worse": found.worse,
        "same": found.same,
        "p_value": float(f"{found.p_value:.2g}"),
        **(_examples(store, (a, b), (before, after), common) if a.split == "train" else {}),
        "summary_line": _summary(a, b, found),
    }


def comparison_text(found: Comparison, *, judged: bool = True) -> str:
    """How big the difference is and how sure, in words. `judged`: it says so where it may be chance."""
    if found.difference is None:
        return "no example in common"
    text = f"{100 * found.difference:+.2f} points"
    if found.interval is not None:
        low, high = (100 * bound for bound in found.interval)
        text += f" (95% interval {low:+.1f} to {high:+.1f})"
    text += f"; {found.better} better, {found.worse} worse, {found.same} same, p = {found.p_value:.2g}"
    return f"{text}: may be chance" if judged and found.p_value > _SIGNIFICANT else text


def _summary(a: RunRecord, b: RunRecord, found: Comparison) -> str:
    runs = f"run {b.run_id} against run {a.run_id} on {a.split}"
    if found.before is None or found.after is None:
        return f"{runs}: no example has a verdict in both"
    scores = f"{100 * found.before:.2f} -> {100 * found.after:.2f} on {found.n} common examples"
    return f"{runs}: {scores}, {comparison_text(found)}"


def _means(store: RunStore, run: RunRecord) -> dict[str, float]:
    return {example_id: mean(scores) for example_id, scores in store.scores(run.run_id).items()}


def _examples(
    store: RunStore,
    runs: tuple[RunRecord, RunRecord],
    scores: tuple[Mapping[str, float], Mapping[str, float]],
    common: Sequence[str],
) -> dict[str, Any]:
    """What is told of single examples."""
    before, after = scores
    fixed = [one for one in common if direction(before[one], after[one]) > 0]
    broken = [one for one in common if direction(before[one], after[one]) < 0]
    steps = dict(_first_changes(store, runs, common))
    changed = {*fixed, *broken}
    return {
        "fixed": fixed,
        "broken": broken,
        "first_changed_step": {one: step for one, step in steps.items() if one in changed},
        "first_changed_counts": dict(Counter(step for step in steps.values() if step is not None).most_common()),
    }


def _first_changes(
    store: RunStore, runs: tuple[RunRecord, RunRecord], common: Sequence[str]
) -> Iterator[tuple[str, str | None]]:
    for begin in range(0, len(common), _AT_ONCE):
        some = common[begin : begin + _AT_ONCE]
        a, b = (_first_judged(store.examples(run.run_id, some)) for run in runs)
        yield from ((one, first_changed_step(a[one].steps, b[one].steps)) for one in some)


def _first_judged(results: Sequence[ExampleResult]) -> dict[str, ExampleResult]:
    """Of each example the first rollout that has a verdict."""
    first: dict[str, ExampleResult] = {}
    for result in results:
        if result.has_verdict:
            first.setdefault(result.example_id, result)
    return first


def first_changed_step(a: Sequence[StepTrace], b: Sequence[StepTrace]) -> str | None:
    """The name of the first step whose outputs differ, in the order in which the steps first ended; None: none do.

    The calls of one step are compared as a whole, whatever their order: those in threads end in any.
    """
    outputs: list[dict[str, Counter[str]]] = [{}, {}]
    for calls, steps in zip(outputs, (a, b), strict=True):
        for step in steps:
            calls.setdefault(step.step_name, Counter())[encode([step.outputs, step.error])] += 1
    for name in {**outputs[0], **outputs[1]}:
        if outputs[0].get(name) != outputs[1].get(name):
            return name
    return None
