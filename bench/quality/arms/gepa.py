"""dspy.GEPA, with its defaults, and with several proposals at a time where the installed one has them.

GEPA looks at its limit before an iteration, not within: it may use up to a minibatch and a validation set more.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import dspy

from quality.arms.job import Job, Outcome
from quality.counter import five_arguments

__all__ = ["gepa", "gepa_parallel"]

_PROPOSALS: Final = 3  # at a time


def gepa(job: Job) -> Outcome:
    return _gepa(job, {})


def gepa_parallel(job: Job) -> Outcome:
    try:
        from gepa.strategies.proposal_sampling import IndependentSampling
    except ImportError:
        raise ValueError("the installed gepa has no parallel proposals; leave out the arm gepa-parallel") from None
    return _gepa(job, {"sampling_strategy": IndependentSampling(_PROPOSALS)}, proposals_at_a_time=_PROPOSALS)


def _gepa(job: Job, more: dict[str, Any], **notes: Any) -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DSPy marks it as experimental
        optimizer = dspy.GEPA(
            metric=five_arguments(job.metric),
            max_metric_calls=job.budget,
            reflection_lm=job.lm("reflection"),
            num_threads=job.threads,
            track_stats=True,
            seed=job.seed,
            gepa_kwargs=more,
        )
        with dspy.context(lm=job.lm("eval")):
            program: Any = optimizer.compile(job.task.program, trainset=job.task.train, valset=job.task.val)
    results = program.detailed_results
    return Outcome(
        program,
        {
            **notes,
            "metric_calls_by_its_own_count": results.total_metric_calls,
            "candidates": len(results.candidates),
            "val_scores": results.val_aggregate_scores,
        },
    )
