"""The arms that search nothing: the program as it is, and with the best prompts that somebody wrote by hand."""

from __future__ import annotations

from collections.abc import Mapping

import dspy

from quality.arms.job import Job, Outcome

__all__ = ["hand", "unchanged", "with_prompts"]


def unchanged(job: Job) -> Outcome:
    return Outcome(job.task.program)


def hand(job: Job) -> Outcome | None:
    if job.task.hand_written is None:
        return None
    return Outcome(with_prompts(job.task.program, job.task.hand_written))


def with_prompts(program: dspy.Module, prompts: Mapping[str, str]) -> dspy.Module:
    """A copy of `program` with other instructions in the steps that are named."""
    changed = program.deepcopy()
    for name, predictor in changed.named_predictors():
        if name in prompts:
            predictor.signature = predictor.signature.with_instructions(prompts[name])
    return changed
