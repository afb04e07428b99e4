"""Several pieces of work at once, each on a daemon thread of its own, so that the end of a process waits for none."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

from kernel_bridge.threads.daemon_pool import DaemonPool

__all__ = ["side_by_side"]

_T = TypeVar("_T")


def side_by_side(tasks: Sequence[Callable[[], _T]], name: str) -> list[_T]:
    """What the tasks return, in their order; all have ended then. `name` is that of the threads.

    Each task has the context variables of whoever calls. Raises what the first of those that raised has raised.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    pool = DaemonPool(len(tasks), name)
    outcomes: list[Future[_T]] = [Future() for _ in tasks]
    try:
        for task, outcome in zip(tasks, outcomes, strict=True):
            carry_out = functools.partial(_carry_out, task, outcome)
            pool.submit(functools.partial(contextvars.copy_context().run, carry_out))
        wait(outcomes)
    finally:
        pool.close()
    pool.join()
    return [outcome.result() for outcome in outcomes]


def _carry_out(task: Callable[[], _T], outcome: Future[_T]) -> None:
    try:
        outcome.set_result(task())
    except BaseException as error:  # noqa: BLE001 - raised by whoever reads the outcome
        outcome.set_exception(error)
