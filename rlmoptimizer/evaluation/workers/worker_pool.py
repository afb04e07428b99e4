"""The executor that examples are evaluated on: the caller's own, or one that a callable of theirs makes."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

from rlmoptimizer.errors import InvalidSetup, InvalidSetupType, WorkersLost
from rlmoptimizer.evaluation.fan_out import Halt
from rlmoptimizer.evaluation.workers.tasks import PROCESS, Arrival, Greeting, LoadTask, Part

__all__ = ["GivenExecutor", "Submitted", "WorkerPool"]

logger = logging.getLogger(__name__)

GivenExecutor: TypeAlias = "Executor | Callable[[], Executor]"

_POLL_SECONDS: Final = 0.5  # how long a wait for a worker lasts before it looks again whether it was halted
_KILLED_SECONDS: Final = 5.0  # how long an executor may take to notice that its workers were killed
_GUARD: Final = "In a script, what makes worker processes and calls compile stands below if __name__ == '__main__':"


@dataclass(frozen=True, slots=True)
class Submitted:
    """A task in the hands of an executor."""

    future: Future[Any]
    generation: int  # which of the executors that were made one after the other


class _Halted(Exception):
    """Nobody waits for the answer any more."""


class WorkerPool:
    """One executor for all runs of a compile. Thread-safe.

    The caller's own is never shut down. One that a callable makes is shut down by `close`, and made anew when it has
    broken: then all that was under way is lost, though only one item can have been the cause. So these run again one
    by one, with nothing else under way on the executor, until it is known which one it was.
    """

    def __init__(self, given: GivenExecutor) -> None:
        self._make = None if isinstance(given, Executor) else given
        self._executor = given if isinstance(given, Executor) else None
        self._lock = threading.RLock()  # of the executor
        self._generation = 0
        self._closed = False
        self._warned = False
        self._elsewhere: bool | None = None  # None: not known yet
        self._order = threading.Lock()  # of the next three
        self._under_way = 0
        self._suspects = 0  # items that run alone, or wait for it
        self._wakers: set[Callable[[], None]] = set()

    # before anything is spent

    def is_elsewhere(self, halts: tuple[Halt, ...] = ()) -> bool:
        """Whether the workers are in other processes. Waits for one of them, until one of `halts` is set.

        Raises `InvalidSetup` when the executor cannot run anything.
        """
        if self._elsewhere is None:
            try:
                arrival = self._asked(Greeting(), halts)
            except _Halted:
                return False  # nothing is handed over any more
            if not isinstance(arrival, Arrival):
                raise InvalidSetup(f"executor gives a {type(arrival).__name__} for what it was given to run")
            self._elsewhere = arrival.travelled or arrival.process != PROCESS.id
        return self._elsewhere

    def load(self, base: Part, halts: tuple[Halt, ...] = ()) -> None:
        """Have a worker try whether it can work with a base. Raises `InvalidSetup` when it cannot."""
        from rlmoptimizer.evaluation.workers.replies import Loaded, NotRun, UnreadableAnswer, unpacked
        from rlmoptimizer.evaluation.workers.worker import versions

        try:
            reply = unpacked(self._asked(LoadTask(base), halts), Loaded, NotRun)
        except _Halted:
            return
        except UnreadableAnswer as error:
            raise InvalidSetup(f"executor: {error}") from None
        if isinstance(reply, NotRun):
            raise InvalidSetup(
                f"a worker of the executor cannot load the student, the metric or the LM: {reply.why}. Its environment "
                "must have the packages and modules that they need"
            )
        ours = versions()
        if differing := [name for name, here in ours.items() if reply.versions.get(name) != here]:
            listed = ", ".join(f"{name} {reply.versions.get(name)} (here {ours[name]})" for name in differing)
            raise InvalidSetup(f"a worker of the executor has other versions: {listed}; it needs those of this process")
        if reply.problem is not None:
            raise InvalidSetup(f"a worker of the executor cannot work: {reply.problem}")

    def _asked(self, task: Callable[[], Any], halts: tuple[Halt, ...]) -> Any:
        try:
            return self._answer(task, halts)
        except (InvalidSetup, _Halted):
            raise
        except BrokenExecutor as error:
            raise InvalidSetup(f"the workers of executor end before they run anything: {error}. {_GUARD}") from error
        except Exception as error:
            raise InvalidSetup(f"executor cannot run anything: {type(error).__name__}: {error}") from error

    def check(self, halts: tuple[Halt, ...]) -> None:
        """Raise `WorkersLost` unless the executor still runs something harmless."""
        try:
            self._answer(Greeting(), halts)
        except _Halted:
            pass
        except Exception as error:
            raise WorkersLost(f"its workers die whatever they run ({type(error).__name__}: {error})") from error

    def _answer(self, task: Callable[[], Any], halts: tuple[Halt, ...]) -> Any:
        future = self._submitted(task).future
        try:
            while not wait([future], _POLL_SECONDS).done:
                if any(halt.is_set() for halt in halts):
                    raise _Halted
            return future.result()
        finally:
            future.cancel()

    # the work

    def submit(self, task: Callable[[], Any]) -> Submitted:
        """Hand over a task that was admitted. Raises `WorkersLost` when the executor takes none."""
        for _ in range(2):  # one that has broken is made anew
            generation = self._generation
            try:
                return self._submitted(task)
            except BrokenExecutor as error:
                self.renew(generation, error)
            except Exception as error:
                raise WorkersLost(f"it takes nothing: {type(error).__name__}: {error}") from error
        raise WorkersLost("it breaks before it runs anything")

    def _submitted(self, task: Callable[[], Any]) -> Submitted:
        with self._lock:
            if self._executor is None:
                self._executor = self._made()
            executor, generation = self._executor, self._generation
        return Submitted(executor.submit(task), generation)

    def _made(self) -> Executor:
        if self._make is None or self._closed:
            raise RuntimeError("there is no executor")
        made: Any = self._make()
        if not isinstance(made, Executor):
            raise InvalidSetupType(
                f"executor must make a concurrent.futures.Executor when it is called, got {type(made).__name__}"
            )
        return made

    def renew(self, generation: int, error: BrokenExecutor) -> None:
        """Put another executor in the place of one that has broken. Raises `WorkersLost` where nothing makes one."""
        with self._lock:
            if self._make is None:
                raise WorkersLost(f"one of its workers has died ({type(error).__name__})", is_broken=True) from error
            if generation != self._generation or self._executor is None:
                return
            broken, self._executor = self._executor, None
            self._generation += 1
            first, self._warned = not self._warned, True
        broken.shutdown(wait=False)
        if first:
            logger.warning(
                "A worker has died, so its executor is made anew. What was under way runs again, one by one "
                "(%s). This is said once",
                type(error).__name__,
            )

    def cancels_only_what_waits(self) -> bool:
        """Whether `cancel` leaves what a worker has begun alone, as it should.

        Futures of Dask never say that they run, and can always be cancelled; others are not known.
        """
        return isinstance(self._executor, (ThreadPoolExecutor, ProcessPoolExecutor))

    # what runs alone

    def listen(self, waker: Callable[[], None]) -> None:
        """Have `waker` called when `admit` may answer another thing than before."""
        with self._order:
            self._wakers.add(waker)

    def unlisten(self, waker: Callable[[], None]) -> None:
        with self._order:
            self._wakers.discard(waker)

    def admit(self, *, alone: bool) -> bool:
        """Whether an item may be handed over now. If so it is under way from now on, until `leave`."""
        with self._order:
            if self._under_way if alone else self._suspects:
                return False
            self._under_way += 1
            return True

    def leave(self) -> None:
        """What was admitted is over, and whoever handed it over knows what came of it."""
        with self._order:
            self._under_way -= 1
            waits = self._suspects > 0
        if waits:
            self._wake()

    def suspect(self) -> None:
        """One more item is to run alone; until `clear`, others only begin when none of these is left."""
        with self._order:
            self._suspects += 1

    def clear(self) -> None:
        """One item that was to run alone has ended."""
        with self._order:
            self._suspects -= 1
        self._wake()

    def _wake(self) -> None:
        with self._order:
            wakers = tuple(self._wakers)
        for waker in wakers:
            waker()

    # the end

    def close(self, seconds: float) -> None:
        """Shut down an executor that was made here. Its workers are killed if that takes so long. Idempotent."""
        with self._lock:
            self._closed = True
            made, self._executor = (None, self._executor) if self._make is None else (self._executor, None)
        if made is not None:
            ending = threading.Thread(target=made.shutdown, name="rlmoptimizer-executor-end", daemon=True)
            ending.start()
            ending.join(seconds)
            if ending.is_alive():
                _kill(made)
                ending.join(_KILLED_SECONDS)


def _kill(executor: Executor) -> None:
    """End the processes of a process pool. Python has a method for it from 3.14 on."""
    kill = getattr(executor, "kill_workers", None)
    if kill is not None:
        with contextlib.suppress(Exception):  # it may be shut down already
            kill()
    processes = cast("dict[int, Any]", getattr(executor, "_processes", None) or {})
    for process in list(processes.values()):
        with contextlib.suppress(OSError, ValueError):  # it has ended
            process.kill()
