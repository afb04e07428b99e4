"""What is handed to an executor. No dspy: Dask's scheduler unpickles it too, on its event loop.

What goes to another process holds bytes and texts only, so it unpickles wherever this package is installed. What it
does there is in `worker`, which is imported when it is called.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from rlmoptimizer.evaluation.fan_out import Halt

__all__ = ["PROCESS", "Arrival", "Greeting", "HereTask", "LoadTask", "Part", "Raised", "RowTask"]

_T = TypeVar("_T")
_R = TypeVar("_R")


class _Process:
    """This process, told apart from all others, also from those that are forked from it."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.id = uuid.uuid4().hex


PROCESS: Final = _Process()


@dataclass(frozen=True, slots=True)
class Part:
    """Something that a worker needs and keeps, by its digest."""

    digest: str
    pickled: bytes | None  # None: it is not sent along, because the worker is thought to have it


@dataclass(frozen=True, slots=True)
class Raised:
    """What the function of a `HereTask` has raised."""

    error: BaseException


class HereTask(Generic[_T, _R]):
    """One item for a thread of this process."""

    __slots__ = ("_function", "_halts", "_value")

    def __init__(self, function: Callable[[_T], _R], value: _T, halts: tuple[Halt, ...]) -> None:
        self._function = function
        self._value = value
        self._halts = halts

    def __call__(self) -> _R | Raised | None:
        """The outcome; None after a halt."""
        if any(halt.is_set() for halt in self._halts):
            return None
        try:
            return self._function(self._value)
        except BaseException as error:  # noqa: BLE001 - so that what an executor raises is its own
            return Raised(error)


class _WorkerTask:
    """A call in another process. Its bytes answer it, whatever happens there."""

    __name__ = "evaluate_example"  # in Dask's keys

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex

    def __dask_tokenize__(self) -> str:
        return self.token  # Dask would take equal tasks for one, and read all of the bytes to find out


class RowTask(_WorkerTask):
    """One row for a worker that needs these parts for it."""

    def __init__(self, base: Part, run: Part, row: bytes) -> None:
        super().__init__()
        self.base = base
        self.run = run
        self.row = row

    def __call__(self) -> bytes:
        from rlmoptimizer.evaluation.workers.worker import run_row

        return run_row(self.base, self.run, self.row)


class LoadTask(_WorkerTask):
    """The base of an evaluation for a worker, which is to see whether it can work with it."""

    def __init__(self, base: Part) -> None:
        super().__init__()
        self.base = base

    def __call__(self) -> bytes:
        from rlmoptimizer.evaluation.workers.worker import load

        return load(self.base)


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where a `Greeting` was called."""

    process: str
    travelled: bool  # it was pickled on its way


class Greeting:
    """Finds out whether an executor works in this process or elsewhere."""

    def __init__(self, *, travelled: bool = False) -> None:
        self._travelled = travelled
        self.token = uuid.uuid4().hex

    def __call__(self) -> Arrival:
        return Arrival(PROCESS.id, self._travelled)

    def __dask_tokenize__(self) -> str:
        return self.token

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, ()


def _arrived() -> Greeting:
    return Greeting(travelled=True)
