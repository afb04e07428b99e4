"""What tests of kernels that die or are maltreated share: a tool, and the check that work goes on."""

from __future__ import annotations

from typing import Any

import psutil

from kernel_bridge import CellOutcome, KernelSession

ENDLESS = 10**6  # restarts
_STANDSTILLS = 10  # of the machine, in a row, that a test of a short limit outlasts


def add(a: int, b: int) -> int:
    return a + b


def settled(session: KernelSession, code: str) -> CellOutcome:
    """What a cell comes to that is done in no time. A machine that stands still may cut it: then it is run again."""
    for _ in range(_STANDSTILLS):
        outcome = session.run(code)
        if outcome.timed_out is None:
            return outcome
    raise AssertionError(f"ran into its limit {_STANDSTILLS} times: {code}")


def cut_short(session: KernelSession, code: str) -> CellOutcome:
    """What a cell comes to that never ends by itself.

    It prints "begun" where it may be cut from then on. A machine that stands still may cut it before: it is run again.
    """
    for _ in range(_STANDSTILLS):
        outcome = session.run(code)
        assert outcome.timed_out or outcome.death
        if outcome.text.startswith("begun\n"):
            return outcome
    raise AssertionError(f"did not begin, {_STANDSTILLS} times: {code}")


def assert_it_works(session: KernelSession) -> None:
    """The next cell computes, prints, remembers and reaches the host."""
    outcome = settled(session, "print(add(kept, 1)); import subprocess; subprocess.run(['echo', 'child']); 'last'")
    found = (outcome.failure, outcome.death, outcome.text)
    assert found == (None, None, "42\nchild\nlast\n"), found


def kernel_pid(session: KernelSession) -> str:
    """Tells one kernel from its successor, also where each has a process table of its own."""
    return settled(session, "import os; os.readlink('/proc/self/ns/pid') + str(os.getpid()) + "
                            "open('/proc/self/stat').read().rpartition(')')[2].split()[19]").text  # fmt: skip


def kernel_process(session: KernelSession) -> psutil.Process:
    """The kernel as the host sees it: the last in the line that begins at the guardian."""
    kernel: Any = session._kernel  # pyright: ignore[reportPrivateUsage]
    found = psutil.Process(kernel.process.pid)
    while (below := [child for child in found.children() if child.status() != psutil.STATUS_ZOMBIE]) and (
        "launch.py" not in " ".join(found.cmdline()) or "bwrap" in found.name() or found.pid == kernel.process.pid
    ):
        found = below[0]
    return found
