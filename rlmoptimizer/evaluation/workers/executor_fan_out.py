"""A fan-out on any executor, also one whose workers are other processes or other machines.

The waiting thread alone hands over and takes back: within a future's callback an executor may hold a lock of its own.
"""

from __future__ import annotations

import functools
from collections import deque
from concurrent.futures import BrokenExecutor, CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from rlmoptimizer.evaluation.fan_out import FanOut, FanOutJob
from rlmoptimizer.evaluation.workers.replies import UnreadableAnswer
from rlmoptimizer.evaluation.workers.transport import SendAgain, Transport
from rlmoptimizer.evaluation.workers.worker_pool import WorkerPool

__all__ = ["ExecutorFanOut"]

_T = TypeVar("_T")
_R = TypeVar("_R")

_MOST_LOSSES: Final = 2  # of one item: after the first it runs again


@dataclass(slots=True, eq=False)
class _Attempt(Generic[_T]):
    """An item on its way."""

    index: int
    value: _T
    attached: frozenset[str] = field(default_factory=frozenset[str])  # parts that a worker has said to lack
    losses: int = 0
    alone: bool = False  # it may have broken the executor, so it runs again with nothing beside it
    is_cancelled: bool = False  # by us
    generation: int = 0


class ExecutorFanOut(FanOut[_T, _R]):
    """On the workers of a pool. Only `width` items are handed over at once, so that several fan-outs take turns.

    An item whose worker dies runs again, once; the second time its outcome is that it was lost. After a halt nothing
    runs again.
    """

    def __init__(self, work: FanOutJob[_T, _R], pool: WorkerPool, transport: Transport[_T, _R]) -> None:
        super().__init__(work)
        self._pool = pool
        self._transport = transport
        self._futures: dict[_Attempt[_T], Future[Any]] = {}  # under `_lock`, as the next two
        self._answers: deque[tuple[_Attempt[_T], Future[Any]]] = deque()
        self._over = False  # nobody will look into `_answers`
        self._again: deque[_Attempt[_T]] = deque()

    def start(self) -> None:
        self._pool.listen(self._news.set)
        self._hand_over()

    def abandon(self, seconds: float = 2.0) -> None:
        super().abandon(seconds)
        self._pool.unlisten(self._news.set)
        with self._lock:
            self._over = True
            answers, self._answers = self._answers, deque()
        self._cancel()
        for attempt, future in answers:
            self._forget(attempt, future)
        while self._again:
            self._end_suspicion(self._again.popleft())

    def _drop_queued(self) -> None:
        if self._pool.cancels_only_what_waits():
            self._cancel()

    def _cancel(self) -> None:
        with self._lock:
            queued = list(self._futures.items())
        for attempt, future in queued:
            attempt.is_cancelled = True
            future.cancel()

    # on the waiting thread

    def _advance(self) -> None:
        for _ in range(len(self._answers)):
            with self._lock:
                answer = self._answers.popleft() if self._answers else None
            if answer is not None:
                try:
                    self._take_back(*answer)
                finally:  # not before it is known whether it runs alone, or was the cause
                    self._pool.leave()
        self._hand_over()

    def _hand_over(self) -> None:
        for attempt in tuple(self._again):  # one that may not begin holds up none behind it
            if self._is_halted():
                self._again.remove(attempt)
                self._give_up(attempt)
            elif self._pool.admit(alone=attempt.alone):
                self._again.remove(attempt)
                self._submit(attempt)
        while self._pool.admit(alone=False):
            if (item := self._take()) is None:
                self._pool.leave()
                return
            self._submit(_Attempt(*item))
        if self._is_halted():
            self._end_if_idle()

    def _submit(self, attempt: _Attempt[_T]) -> None:
        """Hand over what the pool has admitted."""
        try:
            submitted = self._pool.submit(self._transport.task(attempt.value, attempt.attached, self._halts))
        except Exception as error:  # noqa: BLE001 - any executor's own; `wait` raises it
            self._give_up(attempt, error)
            self._pool.leave()
            return
        attempt.generation = submitted.generation
        with self._lock:
            self._futures[attempt] = submitted.future
        submitted.future.add_done_callback(functools.partial(self._answered, attempt))

    def _answered(self, attempt: _Attempt[_T], future: Future[Any]) -> None:
        """On any thread."""
        with self._lock:
            self._futures.pop(attempt, None)
            over = self._over
            if not over:
                self._answers.append((attempt, future))
        if over:
            self._forget(attempt, future)
        else:
            self._news.set()

    def _take_back(self, attempt: _Attempt[_T], future: Future[Any]) -> None:
        error = CancelledError() if future.cancelled() else future.exception()
        if error is not None:
            self._lost(attempt, error)
            return
        try:
            outcome = self._transport.outcome(attempt.value, future.result())
        except SendAgain as refused:
            attempt.attached = refused.missing
            self._again.append(attempt)
        except UnreadableAnswer as unreadable:
            self._lost(attempt, unreadable)
        except BaseException as raised:  # noqa: BLE001 - by the item; `wait` raises it
            self._give_up(attempt, raised)
        else:
            if outcome is not None:
                self._bring(attempt.index, outcome)
            self._give_up(attempt)

    def _lost(self, attempt: _Attempt[_T], error: BaseException) -> None:
        """The executor has no answer for an item."""
        if attempt.is_cancelled or self._is_halted():
            self._give_up(attempt)
            return
        attempt.losses += 1
        try:
            if isinstance(error, BrokenExecutor):
                self._pool.renew(attempt.generation, error)
            if attempt.losses >= _MOST_LOSSES:
                self._pool.check(self._halts)  # whether it was the item
                outcome = None if self._is_halted() else self._transport.lost(attempt.value, error)
                if outcome is not None:
                    self._bring(attempt.index, outcome)
                self._give_up(attempt)
                return
        except Exception as failure:  # noqa: BLE001 - `WorkersLost`, or what a callable of the caller's raises
            self._give_up(attempt, failure)
            return
        if _may_be_another(error) and not attempt.alone:
            attempt.alone = True
            self._pool.suspect()
        self._again.append(attempt)

    def _give_up(self, attempt: _Attempt[_T], error: BaseException | None = None) -> None:
        """An item is not run any more."""
        self._end_suspicion(attempt)
        self._drop(attempt.index, error)

    def _end_suspicion(self, attempt: _Attempt[_T]) -> None:
        if attempt.alone:
            attempt.alone = False
            self._pool.clear()

    def _forget(self, attempt: _Attempt[_T], future: Future[Any]) -> None:
        self._end_suspicion(attempt)
        self._pool.leave()
        if not future.cancelled() and future.exception() is None:
            self._transport.unwanted(future.result())


def _may_be_another(error: BaseException) -> bool:
    """Whether other items were lost with this one, each of which may have been the cause."""
    # Dask's error also comes for what only waited on the worker that died.
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"
