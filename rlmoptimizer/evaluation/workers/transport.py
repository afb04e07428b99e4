"""How rows get to the workers of an executor and outcomes come back: as they are, or as bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, Generic, Protocol, TypeVar

from kernel_bridge.text import printable_line
from rlmoptimizer.evaluation.fan_out import Halt
from rlmoptimizer.evaluation.lm_exchange import ExampleRequests
from rlmoptimizer.evaluation.plain_values import to_plain
from rlmoptimizer.evaluation.row_progress import RowProgress
from rlmoptimizer.evaluation.row_runner import RowOutcome, split_fields
from rlmoptimizer.evaluation.workers.pickled_evaluation import pickled_row
from rlmoptimizer.evaluation.workers.replies import Missing, NotRun, RowRaised, RowRun, UnreadableAnswer, unpacked
from rlmoptimizer.evaluation.workers.tasks import HereTask, Part, Raised, RowTask
from rlmoptimizer.records import WORKER_LOST, ExampleResult
from rlmoptimizer.spending.call_meter import HeardCall
from rlmoptimizer.task.dataset import Row

__all__ = ["HereTransport", "RowTransport", "SendAgain", "Transport"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_R = TypeVar("_R")
_T_contra = TypeVar("_T_contra", contravariant=True)
_R_co = TypeVar("_R_co", covariant=True)

_ERROR_CHARS: Final = 500


class SendAgain(Exception):
    """A worker has done nothing, because it lacks these parts."""

    def __init__(self, missing: frozenset[str]) -> None:
        super().__init__()
        self.missing = missing


class Transport(Protocol[_T_contra, _R_co]):
    """Makes tasks of items, and outcomes of answers."""

    def task(self, value: _T_contra, attached: frozenset[str], halts: tuple[Halt, ...]) -> Callable[[], Any]:
        """What to submit for an item; it has along the parts of these digests. It is not begun after one of `halts`."""
        ...

    def outcome(self, value: _T_contra, answer: Any) -> _R_co | None:
        """What a task's answer says; None: the item was not begun. Raises `SendAgain`, and what the item raised.

        Raises `UnreadableAnswer` for what is none; the item counts as lost then.
        """
        ...

    def lost(self, value: _T_contra, error: BaseException) -> _R_co:
        """The outcome of an item whose workers died. `error`: of the executor."""
        ...

    def unwanted(self, answer: Any) -> None:
        """An answer has come for which nobody waits any more."""
        ...


class HereTransport(Generic[_T, _R]):
    """For an executor in this process."""

    def __init__(self, function: Callable[[_T], _R]) -> None:
        self._function = function

    def task(self, value: _T, attached: frozenset[str], halts: tuple[Halt, ...]) -> HereTask[_T, _R]:
        return HereTask(self._function, value, halts)

    def outcome(self, value: _T, answer: _R | Raised | None) -> _R | None:
        if isinstance(answer, Raised):
            raise answer.error
        return answer

    def lost(self, value: _T, error: BaseException) -> _R:
        raise error  # of a thread, of which none dies

    def unwanted(self, answer: Any) -> None:
        pass


class RowTransport:
    """Rows of one run, for an executor in other processes.

    `count` gets the LM calls that workers made, before the outcome that they belong to is given. The first `width` rows
    have the run along; the base is sent to a worker that lacks it.
    """

    def __init__(
        self,
        base: Part,
        run: Part,
        width: int,
        count: Callable[[Iterable[HeardCall]], None],
        *,
        keeps_requests: bool,
    ) -> None:
        self._base = base
        self._run = run
        self._greeting = width  # rows that still have the run along
        self._count = count
        # A worker knows only of its own rows which of them was the first.
        self._requests = ExampleRequests() if keeps_requests else None

    def task(self, value: Row, attached: frozenset[str], halts: tuple[Halt, ...]) -> RowTask:
        if self._greeting:
            self._greeting -= 1
            attached |= {self._run.digest}
        base, run = (
            part if part.digest in attached else Part(part.digest, None) for part in (self._base, self._run)
        )
        return RowTask(base, run, pickled_row(value))

    def outcome(self, value: Row, answer: Any) -> RowOutcome:
        reply = unpacked(answer, RowRun, RowRaised, Missing, NotRun)
        if isinstance(reply, Missing):
            raise SendAgain(reply.digests)
        if isinstance(reply, NotRun):
            raise UnreadableAnswer(f"a worker cannot load it: {reply.why}")
        self._count(reply.calls)
        if isinstance(reply, RowRaised):
            raise reply.error.error()
        found = reply.outcome.result
        if (found.example_id, found.rollout) != (value.example_id, value.rollout):
            raise UnreadableAnswer("the worker's answer is about another example")
        failure = None if reply.lm_failure is None else reply.lm_failure.error()
        return replace(reply.outcome, result=self._with_wanted_requests(found), lm_failure=failure)

    def lost(self, value: Row, error: BaseException) -> RowOutcome:
        logger.warning(
            "%s failed: the worker that ran it died, and so did the one that ran it again (%s)",
            value.where,
            printable_line(f"{type(error).__name__}: {error}", _ERROR_CHARS),
        )
        inputs, expected = split_fields(value.example)
        progress = RowProgress(value, _NEVER, to_plain(inputs), to_plain(expected))
        text = "WorkerLost: the process that ran the program on this example died, twice"
        return RowOutcome(progress.result(text, WORKER_LOST), metric_called=False, metric_failure=None)

    def unwanted(self, answer: Any) -> None:
        try:
            reply = unpacked(answer, RowRun, RowRaised)
        except UnreadableAnswer:
            return
        self._count(reply.calls)

    def _with_wanted_requests(self, found: ExampleResult) -> ExampleResult:
        requests, position = self._requests, int(found.example_id)
        if requests is None or not any(step.request for step in found.steps):
            return found
        kept = {step.step_name for step in found.steps if step.request and requests.take(step.step_name, position)}
        steps = tuple(step if step.step_name in kept else replace(step, request=None) for step in found.steps)
        return replace(found, steps=steps)


class _Never:
    def is_set(self) -> bool:
        return False


_NEVER: Final = _Never()
