"""The clock of a cell: how much of its time was its own.

The thread that runs the cell asks, the threads of the tool server tell, all at once: one lock guards all that is here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kernel_bridge.options import Limits

__all__ = ["CellClock"]

_CONSOLE_SECONDS = 600.0  # in each cell that the kernel's word is believed for that a console's cell runs


class CellClock:
    """Measures one cell after the other, from `open_cell` on. Thread-safe.

    A cell's own time stands still while host tools run that it has called, but for the CPU time that the kernel uses
    meanwhile (code that computes beside its calls does not wait for them), and while a person's cell runs on a console.
    So at every moment: 0 <= excused <= whole time of the cell.

    Args:
        now: seconds on a clock that never goes back.
    """

    def __init__(self, limits: Limits, *, now: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._now = now
        self._cpu: Callable[[], float] = lambda: 0.0
        self._lock = threading.Lock()  # guards all below
        self._started = self._seen = now()
        self._seen_cpu = 0.0
        self._calls = 0  # in flight
        self._console = False
        self._credit = _CONSOLE_SECONDS
        self._excused = 0.0  # of this cell, but for the calls that are in flight now
        self._calls_seconds = self._calls_cpu = 0.0  # since the first of the calls that are in flight now

    def measure(self, cpu_seconds: Callable[[], float]) -> None:
        """From now on, do not excuse the CPU time that the kernel uses while its calls are running."""
        with self._lock:
            self._advance()
            self._cpu = cpu_seconds
            self._seen_cpu = cpu_seconds()

    def open_cell(self) -> None:
        """A cell starts."""
        with self._lock:
            self._advance()
            self._started = self._seen
            self._credit = _CONSOLE_SECONDS
            self._excused = self._calls_seconds = self._calls_cpu = 0.0

    def begin_call(self) -> None:
        """A host tool begins to run."""
        with self._lock:
            self._advance()
            self._calls += 1

    def end_call(self) -> None:
        """A host tool has ended."""
        with self._lock:
            self._advance()
            self._calls -= 1
            if not self._calls:
                self._excused = self._excused_now()
                self._calls_seconds = self._calls_cpu = 0.0

    def note_console(self, running: bool) -> None:
        """The kernel says that a console's cell begins or ends. Its word may be wrong, and come any number of times."""
        with self._lock:
            self._advance()
            self._console = running and self._credit > 0

    def excused_seconds(self) -> float:
        """Seconds of this cell so far that were not its own."""
        with self._lock:
            self._advance()
            return self._excused_now()

    def left(self) -> tuple[float, str]:
        """Seconds until the first limit of this cell may be reached, and which one, as a clause."""
        with self._lock:
            self._advance()
            whole = self._seen - self._started
            own = whole - self._excused_now()
        seconds, total = self._limits.cell_seconds, self._limits.cell_total_seconds
        return min(
            (seconds - own, f"ran longer than {seconds:g} s of its own time"),
            (total - whole, f"took longer than {total:g} s, with the host tools that it called"),
        )

    def leave_to_parent(self) -> None:
        """In the child of a fork: a thread that is not here may have held the lock."""
        self._lock = threading.Lock()

    def _excused_now(self) -> float:
        return self._excused + max(0.0, self._calls_seconds - self._calls_cpu)

    def _advance(self) -> None:
        """Account for the time since the last look."""
        now, cpu = self._now(), self._cpu()
        passed, used = now - self._seen, max(0.0, cpu - self._seen_cpu)
        self._seen, self._seen_cpu = now, cpu
        if self._console:  # the CPU time is the person's
            believed = min(passed, self._credit)
            self._excused += believed
            self._credit -= believed
            self._console = self._credit > 0
        elif self._calls:
            self._calls_seconds += passed
            self._calls_cpu += used
