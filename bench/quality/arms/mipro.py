"""dspy.MIPROv2, instructions only.

It has no limit in metric calls. What it does beforehand (it bootstraps examples for its proposer to see) is kept to a
fifth of the budget, and its trials are chosen so that they fit in what that left.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any, Final

import dspy

from quality.arms.job import Job, Outcome
from quality.counter import score_of

__all__ = ["Trials", "mipro", "plan_trials"]

_CANDIDATES: Final = 6  # instructions a step, as its auto="light" has
_BOOTSTRAPPED_SETS: Final = _CANDIDATES - 2  # of the sets of examples, one is empty and one is left out
_FULL_EVERY: Final = 5  # trials, its default
_LARGEST_MINIBATCH: Final = 35  # its default
_SMALLEST_MINIBATCH: Final = 20  # a smaller one says little


@dataclass(frozen=True, slots=True)
class Trials:
    """How MIPROv2 looks for the best combination."""

    val: int  # rows
    trials: int
    minibatch: int | None  # rows; None: each trial is on all of val

    @property
    def metric_calls(self) -> int:
        """The unchanged program on val, and the trials."""
        if self.minibatch is None:
            return self.val * (1 + self.trials)
        full = self.trials // _FULL_EVERY + (self.trials % _FULL_EVERY != 0)
        return self.val * (1 + full) + self.minibatch * self.trials


def plan_trials(left: int, val: int) -> Trials:
    """The most trials that `left` metric calls pay for; of two plans with as many, the one with more rows a trial."""
    rows = min(val, left // 3)
    if rows < 1:
        raise ValueError(f"{left} metric calls are too few for the trials of the arm mipro")
    plans = [Trials(rows, trials, None) for trials in range(1, left // rows)]
    for minibatch in range(min(_SMALLEST_MINIBATCH, rows), min(_LARGEST_MINIBATCH, rows - 1) + 1):
        plans += [Trials(rows, trials, minibatch) for trials in range(1, left // minibatch)]
    most = 2 * _CANDIDATES  # with more it would try few combinations that it has not tried
    fitting = [one for one in plans if one.metric_calls <= left and one.trials <= most]
    return max(fitting, key=lambda one: (one.trials, one.minibatch or one.val))


def mipro(job: Job) -> Outcome:
    optimizer = _WithinBudget(job)
    program = optimizer.compile(
        job.task.program,
        trainset=job.task.train,
        valset=job.task.val,
        num_trials=1,  # until it is known what is left
        minibatch=False,
    )
    return Outcome(program, optimizer.notes)


class _WithinBudget(dspy.MIPROv2):
    """Two of its phases with other arguments. Their names are DSPy's own and private: look here when DSPy is newer."""

    def __init__(self, job: Job) -> None:
        self._budget = job.budget
        self._used = 0  # metric calls
        self._lock = threading.Lock()
        self._counted_metric = job.metric
        self.notes: dict[str, Any] = {}
        super().__init__(
            metric=self._score,
            prompt_model=job.lm("proposer"),
            task_model=job.lm("eval"),
            max_bootstrapped_demos=0,
            max_labeled_demos=0,
            auto=None,
            num_candidates=_CANDIDATES,
            num_threads=job.threads,
            max_errors=1_000_000,  # an answer that does not parse is a score of 0 and no reason to end
            seed=job.seed,
        )

    def _score(self, example: Any, prediction: Any, trace: Any = None) -> float:
        """A plain number: an object with a score of 0 would be a success to it."""
        with self._lock:
            self._used += 1
        return score_of(self._counted_metric(example, prediction))

    def _bootstrap_fewshot_examples(self, program: Any, trainset: list[Any], *args: Any, **kwargs: Any) -> Any:
        rows = max(1, self._budget // 5 // _BOOTSTRAPPED_SETS)  # at most; with successes fewer are looked at
        self.notes["bootstrap_rows"] = rows
        return super()._bootstrap_fewshot_examples(program, trainset[:rows], *args, **kwargs)

    def _optimize_prompt_parameters(
        self, program: Any, instructions: Any, demos: Any, evaluate: Any, valset: list[Any], *args: Any
    ) -> Any:
        planned = plan_trials(self._budget - self._used, len(valset))
        rows = valset[: planned.val]
        evaluate.devset = rows
        self.notes["trials"] = asdict(planned)
        size = planned.minibatch or planned.val
        return super()._optimize_prompt_parameters(
            program,
            instructions,
            demos,
            evaluate,
            rows,
            planned.trials,
            planned.minibatch is not None,
            size,
            _FULL_EVERY,
            args[-1],
        )
