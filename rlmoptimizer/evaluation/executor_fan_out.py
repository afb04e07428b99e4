"""A fan-out on any executor, also one whose workers are other processes or other machines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Generic, TypeVar

from rlmoptimizer.evaluation.fan_out import FanOut, FanOutJob, Halt

__all__ = ["ExecutorFanOut"]

_T = TypeVar("_T")
_R = TypeVar("_R")


class ExecutorFanOut(FanOut[_T, _R]):
    """On any executor; for one in other processes the function, the items and the outcomes must pickle.

    Only `width` items are handed over at once, so that several fan-outs on one executor take turns.
    """

    def __init__(self, work: FanOutJob[_T, _R], executor: Executor) -> None:
        super().__init__(work)
        self._executor = executor
        self._queued: set[Future[_R | None]] = set()  # under `_lock`, as is the next
        self._calls = 0  # of `_hand_out` that have not been answered

    def start(self) -> None:
        self._hand_out()

    def _hand_out(self) -> None:
        with self._lock:
            self._calls += 1
            if self._calls > 1:
                # Another thread is handing out and will look once more. So will this very thread when the executor
                # runs an item within `submit`: without this, each item would nest in the one before.
                return
        while True:
            while (item := self._take()) is not None:
                self._submit(*item)
            with self._lock:
                self._calls = min(self._calls - 1, 1)
                if not self._calls:
                    return

    def _submit(self, index: int, value: _T) -> None:
        try:
            future = self._executor.submit(_Task(self._function, value, self._halts))
        except Exception as error:  # noqa: BLE001 - any executor's own; `wait` raises it
            self._drop(index, error)
            return
        with self._lock:
            self._queued.add(future)
        future.add_done_callback(functools.partial(self._take_back, index))

    def _take_back(self, index: int, future: Future[_R | None]) -> None:
        with self._lock:
            self._queued.discard(future)
        if future.cancelled():
            self._drop(index)
        elif (error := future.exception()) is not None:
            self._drop(index, error)
        elif (outcome := future.result()) is not None:
            self._bring(index, outcome)
        else:
            self._drop(index)
        self._hand_out()

    def _drop_queued(self) -> None:
        with self._lock:
            queued = list(self._queued)
        for future in queued:
            future.cancel()


class _Task(Generic[_T, _R]):
    """One call. It pickles without the events, which only this process can see."""

    __slots__ = ("_function", "_halts", "_value")

    def __init__(self, function: Callable[[_T], _R], value: _T, halts: tuple[Halt, ...]) -> None:
        self._function = function
        self._value = value
        self._halts = halts

    def __call__(self) -> _R | None:
        """The outcome; None after a halt."""
        if any(halt.is_set() for halt in self._halts):
            return None
        return self._function(self._value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Task, (self._function, self._value, ())
