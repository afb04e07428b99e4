"""What tests of kernels that die or are maltreated share: a tool, and the check that work goes on."""

from __future__ import annotations

from typing import Any

import psutil

from kernel_bridge import KernelSession

ENDLESS = 10**6  # restarts


def add(a: int, b: int) -> int:
    return a + b


def assert_it_works(session: KernelSession) -> None:
    """The next cell computes, prints, remembers and reaches the host."""
    outcome = session.run("print(add(kept, 1)); import subprocess; subprocess.run(['echo', 'child']); 'last'")
    found = (outcome.failure, outcome.death, outcome.text)
    assert found == (None, None, "42\nchild\nlast\n"), found


def kernel_pid(session: KernelSession) -> str:
    """Tells one kernel from its successor, also where each has a process table of its own."""
    return session.run("import os; os.readlink('/proc/self/ns/pid') + str(os.getpid()) + open('/proc/self/stat').read()"
                       ".rpartition(')')[2].split()[19]").text  # fmt: skip


def kernel_process(session: KernelSession) -> psutil.Process:
    """The kernel as the host sees it: the last in the line that begins at the guardian."""
    kernel: Any = session._kernel  # pyright: ignore[reportPrivateUsage]
    found = psutil.Process(kernel.process.pid)
    while (below := [child for child in found.children() if child.status() != psutil.STATUS_ZOMBIE]) and (
        "launch.py" not in " ".join(found.cmdline()) or "bwrap" in found.name() or found.pid == kernel.process.pid
    ):
        found = below[0]
    return found
