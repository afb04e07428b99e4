"""A few examples of train run for a check, with the metric asked twice about each prediction."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from rlmoptimizer.check.model_meter import ModelMeter, without
from rlmoptimizer.check.report import ExampleTried, MetricFound
from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.compilation.setup_record import metric_name
from rlmoptimizer.errors import InvalidScore, MetricFailed
from rlmoptimizer.evaluation.evaluator import Evaluator, LMsFailed
from rlmoptimizer.evaluation.metric import Scorer, bind_metric, read_verdict
from rlmoptimizer.evaluation.run_execution import SPACES
from rlmoptimizer.evaluation.step_recorder import describe_error
from rlmoptimizer.records import METRIC_ERRORS, ExampleResult, RoleUsage
from rlmoptimizer.task.copying import copy_of
from rlmoptimizer.task.dataset import Row

__all__ = ["TrialRun", "tried"]

_TRACEBACK_CHARS: Final = 4000


@dataclass(frozen=True, slots=True)
class TrialRun:
    """What came of the examples."""

    examples: tuple[ExampleTried, ...]
    metric: MetricFound
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    usage: RoleUsage  # of all of it
    usage_once: RoleUsage  # as if the metric had been asked once
    answered: Mapping[str, bool]  # models that answered, past DSPy's cache -> whether every answer had a price


def tried(setup: Setup, rows: Sequence[Row]) -> TrialRun:
    """Run the rows as the baseline does, so that it finds the answers in DSPy's cache; nothing is stored or paid."""
    settings, lms = setup.settings, [lm for users in setup.lms().values() for lm in users]
    meter = ModelMeter(lms)
    scorer = bind_metric(setup.metric, settings.perfect_score)
    twice = _AskedTwice(scorer, ModelMeter(lms))
    results: list[ExampleResult] = []
    failure = None
    with meter.role("eval"):
        context = contextvars.copy_context()
    with Evaluator(
        replace(scorer, metric=twice),
        setup.eval_lm,
        settings.num_threads,
        context=context,
        example_timeout=settings.example_timeout,
    ) as evaluator:
        try:
            evaluator.score(setup.student, rows, on_results=results.extend, space=SPACES["train"])
        except MetricFailed as failed:
            failure = failed.traceback_text
        except LMsFailed:
            pass  # the rows say so
    results.sort(key=lambda result: int(result.example_id))
    found = _metric_found(metric_name(setup.metric), results, twice.pairs)
    problems = list(_problems(results, failure, twice))
    usage = meter.ledger.usage()["eval"]
    return TrialRun(
        tuple(map(_example_tried, results)),
        found,
        tuple(problems),
        tuple(_warnings(results, found)),
        usage,
        without(usage, twice.usage),
        dict(meter.answered),
    )


class _AskedTwice:
    """A metric that asks another one twice and gives its first answer. Thread-safe as that is.

    About a step of a prediction it asks once: that answer is feedback, and a judge may cost as much as the program.

    `meter` gets the LM calls of the second times.
    """

    def __init__(self, scorer: Scorer, meter: ModelMeter) -> None:
        self._metric = scorer.metric
        self._perfect_score = scorer.perfect_score
        self._meter = meter
        self.pairs: list[tuple[float, float]] = []  # scores of the same prediction, where it gave two
        self.errors: list[str] = []  # of the second time

    @property
    def usage(self) -> RoleUsage:
        """Of the second times."""
        return self._meter.ledger.usage()["eval"]

    def __call__(self, example: Any, prediction: Any, *args: Any, **kwargs: Any) -> Any:
        if (args[1] if len(args) > 1 else kwargs.get("pred_name")) is not None:
            return self._metric(example, prediction, *args, **kwargs)
        copies = copy_of(example), copy_of(prediction)  # first: many metrics normalize in place

        def again() -> Any:
            return self._metric(*copies, *args, **kwargs)

        first = self._metric(example, prediction, *args, **kwargs)
        if inspect.isawaitable(first):
            return self._awaited(first, again)
        try:
            with self._meter.role("eval"):
                second = again()
        except Exception as error:  # noqa: BLE001 - the metric is foreign code; the report tells
            self.errors.append(describe_error(error))
        else:
            self._compare(first, second)
        return first

    async def _awaited(self, asked: Any, again: Callable[[], Any]) -> Any:
        first = await asked
        try:
            with self._meter.role("eval"):
                second = await again()
        except Exception as error:  # noqa: BLE001 - the metric is foreign code; the report tells
            self.errors.append(describe_error(error))
        else:
            self._compare(first, second)
        return first

    def _compare(self, first: Any, second: Any) -> None:
        try:
            pair = tuple(read_verdict(answer, self._perfect_score).score for answer in (first, second))
        except InvalidScore:
            return  # the row says so
        self.pairs.append((pair[0], pair[1]))


def _example_tried(result: ExampleResult) -> ExampleTried:
    return ExampleTried(
        result.example_id,
        result.score if result.has_verdict else None,
        result.error,
        result.error_kind,
        result.seconds,
        bool(result.feedback) or any(step.feedback for step in result.steps),
    )


def _metric_found(name: str, results: Sequence[ExampleResult], pairs: Sequence[tuple[float, float]]) -> MetricFound:
    scores = [result.score for result in results if result.error is None]
    return MetricFound(
        name,
        compared=len(pairs),
        differing=sum(first != second for first, second in pairs),
        lowest=min(scores, default=None),
        highest=max(scores, default=None),
        gives_feedback=any(_example_tried(result).has_feedback for result in results),
    )


def _problems(results: Sequence[ExampleResult], failure: str | None, twice: _AskedTwice) -> Iterator[str]:
    count = len(results)
    wrong = [result for result in results if result.error_kind in METRIC_ERRORS]
    if failure is not None:
        yield f"the metric gave no score on any prediction; mend it. The first failure:\n{failure[-_TRACEBACK_CHARS:]}"
    elif wrong:
        yield (
            f"the metric gave no valid score on {len(wrong)} of {count} examples, which would count as wrong answers; "
            f"mend it. The first failure: {wrong[0].error}"
        )
    if twice.errors and failure is None:
        yield f"the metric raised when it was asked about the same prediction again; mend it: {twice.errors[0]}"
    if unanswered := [result for result in results if not result.has_verdict]:
        yield (
            f"an LM failed on {len(unanswered)} of {count} examples; look at eval_lm. The first error: "
            f"{unanswered[0].error}"
        )
    broken = [result for result in results if result.error_kind not in (None, *METRIC_ERRORS) and result.has_verdict]
    if broken and len(broken) == count:
        yield (
            f"the program failed on all {count} examples; run it on one by hand. The first error: {broken[0].error}"
        )


def _warnings(results: Sequence[ExampleResult], metric: MetricFound) -> Iterator[str]:
    if metric.differing:
        yield (
            f"the metric gave other scores when it was asked about the same prediction again ({metric.differing} of "
            f"{metric.compared}): differences between prompts will partly be its own. Make it repeatable, such as by "
            "an LM judge with a temperature of 0"
        )
    if not metric.gives_feedback and any(0.0 < result.score < 1.0 for result in results if result.error is None):
        yield (
            "the metric gives partial scores and no feedback: what a prediction lacks can only be seen by comparing it "
            "with the labels. Return dspy.Prediction(score=..., feedback=...) to tell the agent"
        )
    broken = [result for result in results if result.error is not None and result.error_kind not in METRIC_ERRORS]
    broken = [result for result in broken if result.has_verdict]
    if broken and len(broken) < len(results):
        yield f"the program failed on {len(broken)} of {len(results)} examples. The first error: {broken[0].error}"
