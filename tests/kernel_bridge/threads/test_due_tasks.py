"""Tasks that are due again and again: none holds up another, and no thread outlives the last."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from kernel_bridge.threads.due_tasks import DueTasks

Wait = Callable[..., None]


@dataclass(eq=False)
class Task:
    work: Callable[[], float | None]

    def run(self) -> float | None:
        return self.work()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("due ")]


@pytest.fixture
def tasks(wait_until: Wait) -> DueTasks:
    wait_until(lambda: not threads(), "the end of another test's threads")
    return DueTasks("due")


def counted(times: int) -> tuple[Task, threading.Event]:
    """A task that is due so many times, and what is set then."""
    left, done = [times], threading.Event()

    def work() -> float | None:
        left[0] -= 1
        if left[0]:
            return 0.001
        done.set()
        return None

    return Task(work), done


def test_many_tasks_share_a_few_threads_which_end_with_the_last(tasks: DueTasks, wait_until: Wait) -> None:
    made = [counted(5) for _ in range(100)]
    for task, _ in made:
        tasks.add(task, 0.001)
    for _, done in made:
        assert done.wait(60)
    assert len(threads()) < 20  # two, and one more each time that the machine stood still
    wait_until(lambda: not threads(), "the end of the threads")


def test_tasks_that_hang_hold_up_no_other(tasks: DueTasks, wait_until: Wait) -> None:
    gate, entered = threading.Event(), threading.Barrier(4)

    def hang() -> None:
        entered.wait(60)
        gate.wait(60)

    hung = [Task(hang) for _ in range(3)]
    for task in hung:
        tasks.add(task, 0)
    entered.wait(60)
    task, done = counted(5)
    tasks.add(task, 0)
    assert done.wait(60)
    assert not any(tasks.cancel(task, 0) for task in hung)
    gate.set()
    assert all(tasks.cancel(task, 60) for task in hung)
    wait_until(lambda: not threads(), "the end of the threads")


def test_a_task_that_was_cancelled_runs_no_more_and_one_that_runs_is_waited_for(tasks: DueTasks) -> None:
    ran: list[int] = []
    entered, gate = threading.Event(), threading.Event()

    def work() -> float:
        ran.append(1)
        entered.set()
        gate.wait(60)
        return 0.0

    task = Task(work)
    tasks.add(task, 0)
    assert entered.wait(60)
    assert not tasks.cancel(task, 0)
    gate.set()
    assert tasks.cancel(task, 60)
    other, done = counted(3)
    tasks.add(other, 0)
    assert done.wait(60)
    assert ran == [1]


def test_a_task_may_cancel_itself_and_be_added_again(tasks: DueTasks) -> None:
    done = threading.Event()
    ran: list[int] = []

    def work() -> float:
        ran.append(1)
        tasks.cancel(task, 60)
        if len(ran) < 3:
            tasks.add(task, 0)
        else:
            done.set()
        return 0.0

    task = Task(work)
    tasks.add(task, 0)
    assert done.wait(60)
    assert tasks.cancel(task, 60)
    assert len(ran) == 3


def test_a_task_that_fails_is_logged_and_costs_no_other(
    tasks: DueTasks, caplog: pytest.LogCaptureFixture, wait_until: Wait
) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    tasks.add(Task(fail), 0)
    task, done = counted(3)
    tasks.add(task, 0.001)
    assert done.wait(60)
    wait_until(lambda: "a bug" in caplog.text, "the log")


def test_a_task_that_is_far_off_can_be_made_due(tasks: DueTasks) -> None:
    task, done = counted(1)
    tasks.add(task, 3600)
    tasks.make_due(task)
    assert done.wait(60)


def test_where_no_thread_can_be_started_the_caller_is_told(tasks: DueTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    task, done = counted(1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="can't start new thread"):
            tasks.add(task, 0)
    tasks.add(task, 0)
    assert done.wait(60)
