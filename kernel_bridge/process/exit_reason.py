"""How a kernel ended, as facts and as a clause for people."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from kernel_bridge.inside import DAMAGED, DAMAGED_STATUS

__all__ = ["ExitReason"]


@dataclass(frozen=True, slots=True)
class ExitReason:
    """How a kernel ended."""

    code: int | None  # exit status; negative: a signal; None: nobody could tell
    stderr_tail: str
    verdict: str | None = None  # why the watchdog killed it

    def clause(self) -> str:
        """The reason as one clause, such as "it was killed by signal 11 (SIGSEGV, segmentation fault)"."""
        if self.verdict is not None:
            return self.verdict
        if self.code is None:
            return "it ended in a way that nobody saw"
        if self.code == DAMAGED_STATUS and DAMAGED in self.stderr_tail:
            why = self.stderr_tail.rpartition(DAMAGED)[2].strip()
            return f"the code that it had run had damaged it, and it ended itself ({why[:300]})"
        if self.code >= 0:
            return f"it exited with status {self.code}"
        number = -self.code
        name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
        return f"it was killed by signal {number} ({name}{_SIGNAL_NOTES.get(name, '')})"


_SIGNAL_NOTES = {
    "SIGKILL": "; out of memory, or killed from outside",
    "SIGSEGV": ", segmentation fault",
    "SIGABRT": ", aborted by a library",
    "SIGXCPU": ", out of its CPU seconds",
    "SIGXFSZ": ", a file larger than allowed",
    "SIGBUS": ", bus error",
    "SIGFPE": ", arithmetic error in C code",
    "SIGILL": ", illegal instruction",
}
