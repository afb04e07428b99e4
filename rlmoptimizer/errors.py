"""The error families: what the caller, the disk or the agent got wrong.

Three fates: the caller or the disk is at fault and `compile()` stops (`InvalidSetup`, `MetricFailed`, `WorkersLost`,
`StoreCorrupt`);
the agent is at fault, reads the message and goes on (`AgentError` and below); anything else is a bug of ours.
Attributes carry the facts, the message ends with the next step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

from kernel_bridge.errors import Refusal
from rlmoptimizer.text import usd_text

__all__ = [
    "AgentError",
    "BudgetExceededError",
    "CostExceededError",
    "CostLimitReached",
    "InputsError",
    "InvalidScore",
    "InvalidSetup",
    "InvalidSetupType",
    "LMUnavailable",
    "MetricFailed",
    "OptimizationEnded",
    "OptimizerError",
    "PromptUpdateError",
    "SelectionError",
    "StoreCorrupt",
    "StoreInUse",
    "SubmissionError",
    "TimeExceededError",
    "UnknownRunError",
    "WorkersLost",
]

_E = TypeVar("_E", bound="OptimizerError")


def add_note(error: BaseException, note: str) -> None:
    """Add what Python prints below an exception, from 3.11 on; `notes_of` gives it everywhere."""
    notes = [*notes_of(error), note]
    with contextlib.suppress(AttributeError, TypeError):  # a class that takes no attributes
        error.__notes__ = notes  # pyright: ignore[reportAttributeAccessIssue] # in typeshed from 3.11 on


def notes_of(error: BaseException) -> list[str]:
    notes: Any = getattr(error, "__notes__", None)
    return list(cast("list[str]", notes)) if isinstance(notes, list) else []


def _rebuild(kind: type[_E], args: tuple[Any, ...], facts: dict[str, Any]) -> _E:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class OptimizerError(Exception):
    """Everything that this package raises on purpose. Survives pickling with its attributes."""

    # The default rebuilds an exception by calling its class with the message, which our constructors do not take.
    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class InvalidSetup(OptimizerError, ValueError):
    """A parameter, a data set, a metric or a program that cannot be worked with. The message says what to change."""


class InvalidSetupType(InvalidSetup, TypeError):
    """`InvalidSetup` for a value of the wrong type; a `TypeError` too."""


class MetricFailed(OptimizerError):
    """The metric gave no score on any example that reached it: it raised, or returned something that is no score.

    `traceback_text` says what the first failure was, in the caller's own frames where the metric raised; the message
    holds it too.
    """

    def __init__(self, traceback_text: str, *, failed: int = 1) -> None:
        self.traceback_text = traceback_text
        self.failed = failed  # examples without a score
        noun = "the only example" if failed == 1 else f"all {failed} examples"
        super().__init__(f"the metric gave no score on {noun} that reached it. The first failure:\n{traceback_text}")


class WorkersLost(OptimizerError, RuntimeError):
    """The executor takes no more work, or its workers die whatever they run. What is stored is kept.

    `is_broken`: it was the caller's own, one of its workers has died, and it can never be used again.
    """

    def __init__(self, why: str, *, is_broken: bool = False) -> None:
        self.is_broken = is_broken
        advice = (
            "Such an executor cannot be used again; pass a callable that makes one, such as "
            "executor=lambda: ProcessPoolExecutor(4), and it is made anew when that happens"
            if is_broken
            else "Look at its workers"
        )
        super().__init__(
            f"the executor runs no more examples: {why}. {advice}. Every result so far is kept: with a "
            "run_storage_dir, compile(..., resume=True) goes on from there, on this or another executor"
        )


class CostLimitReached(OptimizerError):
    """`max_cost_usd` does not pay for the baseline, without which nothing can be optimized."""

    def __init__(self, limit_usd: float, spent_usd: float, *, done: int, total: int, split: str) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.done = done  # examples of the baseline on `split` that were evaluated
        self.total = total
        self.split = split
        super().__init__(
            f"max_cost_usd={limit_usd:g} does not pay for the baseline: after {done} of {total} examples of {split} "
            f"{usd_text(spent_usd)} were spent, and nothing was optimized. Begin anew with a higher limit or fewer "
            "examples"
        )


class StoreCorrupt(OptimizerError):
    """The run store at `path` cannot be read or written. What is in it stays as it is."""

    def __init__(self, path: str, reason: str, advice: str = "Free the disk or pass another directory") -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"the run store {path} cannot be used: {reason}. {advice}")


class StoreInUse(InvalidSetup):
    """The process `pid` writes to the run store at `path`; None: it is not known which one."""

    def __init__(self, path: str, pid: int | None) -> None:
        self.path = path
        self.pid = pid
        who = "another compile" if pid is None else f"process {pid}"
        super().__init__(
            f"{who} is at work on the run store {path}; wait for its end, or read it with "
            "RLMDocstringOptimizer.best_program(student, run_storage_dir)"
        )


class InvalidScore(OptimizerError, ValueError):
    """The metric returned something that is not a score. Makes one error row; never ends a run."""


class AgentError(OptimizerError, Refusal):
    """A request of the agent that was refused before anything happened. The agent reads the message and goes on."""


class BudgetExceededError(AgentError):
    """`asked` units do not fit into the `left` ones. Nothing was spent."""

    def __init__(self, asked: int, left: int, purpose: str = "evaluate", *, repeats: int = 1) -> None:
        self.asked = asked
        self.left = left
        self.purpose = purpose
        self.repeats = repeats  # units for each example
        super().__init__(f"asked for {_units(asked)}, {left} left; {self._advice()}")

    def _advice(self) -> str:
        if self.purpose == "rlm_max_llm_calls":
            # This limit is not the budget's: evaluations may still be possible.
            most = f"send at most {self.left}" if self.left > 0 else "no more can be sent; evaluations still run"
            return f"the number of sub-LM prompts is limited too (rlm_max_llm_calls); {most}"
        if self.left <= 0:
            return "nothing more can be evaluated or asked, but you can go on thinking and submit"
        return _what_fits(self.purpose, self.left, self.repeats)


class CostExceededError(AgentError):
    """What was asked for is expected to cost `asked_usd`, and of `max_cost_usd` only `left_usd` is left.

    Nothing was spent. `asked_usd` is 0 when nothing is known yet of what such calls cost. `fits` evaluations or prompts
    would fit; None: that is not known.
    """

    def __init__(
        self,
        asked_usd: float,
        left_usd: float,
        purpose: str = "evaluate",
        *,
        fits: int | None = None,
        repeats: int = 1,
    ) -> None:
        self.asked_usd = asked_usd
        self.left_usd = left_usd
        self.purpose = purpose
        self.fits = fits
        self.repeats = repeats  # evaluations of each example
        super().__init__(f"{self.said}; {self._advice()}")

    @property
    def said(self) -> str:
        """Why it was refused, without what to do."""
        if self.left_usd <= 0:
            return "max_cost_usd is used up"
        return f"expected to cost {usd_text(self.asked_usd)}, and {usd_text(self.left_usd)} of max_cost_usd are left"

    def _advice(self) -> str:
        if self.left_usd <= 0 or not self.fits:
            return "no more of it can be paid; submit what is best so far"
        return _what_fits(self.purpose, self.fits, self.repeats)


class OptimizationEnded(AgentError):
    """The work has come to an end that its user set, by `reason`: "target_score", "patience" or "max_seconds"."""

    def __init__(self, reason: str, said: str) -> None:
        self.reason = reason
        super().__init__(f"the optimization ends here: {said}. Nothing more can be evaluated or asked; submit now")


class TimeExceededError(AgentError):
    """A run on val is expected to take `seconds`, and only `left` are left of `max_seconds`. Nothing was spent."""

    def __init__(self, seconds: float, left: float) -> None:
        self.seconds = seconds
        self.left = left
        super().__init__(
            f"a run on val takes about {seconds:.0f} s, and {left:.0f} s of max_seconds are left; val always runs "
            "whole. Use what is left on train, or submit"
        )


class LMUnavailable(AgentError):
    """No example of an evaluation has a verdict, because an LM failed on each of them.

    `paid` of them were paid, because they show what was answered before it failed.
    """

    def __init__(self, run_id: str, examples: int, cause: str, paid: int = 0) -> None:
        self.run_id = run_id
        self.examples = examples
        self.cause = cause
        self.paid = paid
        noun = "the only example" if examples == 1 else f"all {examples} examples"
        spent = (
            f"{paid} of them {'is' if paid == 1 else 'are'} paid, because run_data({run_id!r}) shows what was answered "
            "before, and cost nothing when they are run again"
            if paid
            else "Nothing was spent"
        )
        super().__init__(
            f"the LM that runs the program failed on {noun} of run {run_id}, so there is no score: {cause}. "
            f"{spent}; ask for the same evaluation again when it works, or go on with what you know and submit"
        )


class PromptUpdateError(AgentError):
    """A prompt for `step` was refused; the program is as it was. `step` None: what was given names no step.

    `given`: the argument with prompts that were only to be tried; None: they were to be set.
    """

    def __init__(self, step: str | None, reason: str, *, given: str | None = None) -> None:
        self.step = step
        self.reason = reason
        self.given = given
        if given is not None:
            where = "" if step is None else f"step {step!r}: "
            super().__init__(f"{given} cannot be used, and nothing was run: {where}{reason}")
        else:
            what = "no prompt was changed" if step is None else f"the prompt of step {step!r} was not changed"
            super().__init__(f"{what}: {reason}")


class UnknownRunError(AgentError):
    """There is no run `run_id`; `known` are the ids that exist, oldest first."""

    def __init__(self, run_id: str, known: Iterable[str]) -> None:
        self.run_id = run_id
        self.known: tuple[str, ...] = tuple(known)
        super().__init__(f"there is no run {run_id!r}; {_listing(self.known)}")


class SelectionError(AgentError):
    """A selection of examples that means nothing for this data set. The message says what is valid."""


class InputsError(AgentError):
    """Inputs that the program cannot be tried on. The message says what is accepted; nothing was spent."""


class SubmissionError(AgentError):
    """A submission that is not one non-empty text for every step. The message lists what is missing or too much."""


def _what_fits(purpose: str, count: int, repeats: int) -> str:
    """What to ask for instead, when there is room for so many evaluations or prompts; an example takes `repeats`."""
    if purpose == "race":
        limit = f"pass a limit of {count // repeats}, fewer ids or " if count >= repeats else "pass "
        return f"a race may run all of its examples for each of {repeats} candidates; {limit}fewer candidates"
    if purpose == "evaluate" and repeats > 1:
        limit = f" or a limit of {count // repeats}" if count >= repeats else ""
        return f"repeats={repeats} makes each example cost {repeats}; pass fewer repeats, fewer ids{limit}"
    if purpose == "validate" and repeats > 1:
        return f"repeats={repeats} runs the whole of val {repeats} times; pass fewer repeats"
    if purpose == "evaluate":
        return f"pass fewer ids or a limit of {count}"
    if purpose == "validate":
        return f"val always runs whole; what is left can still be spent on train (limit={count})"
    return f"send at most {count} prompt{'' if count == 1 else 's'}"


def _units(count: int) -> str:
    return f"{count} unit{'' if count == 1 else 's'}"


def _listing(known: Sequence[str], shown: int = 20) -> str:
    if not known:
        return "there are no runs yet"
    if len(known) <= shown:
        return f"the runs are {', '.join(known)}"
    return f"the latest of {len(known)} runs are {', '.join(known[-shown:])}"
