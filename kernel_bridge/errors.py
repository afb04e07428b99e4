"""The error families of the bridge, and what errors of the operating system mean.

Three fates: the agent's code can repair it (it never becomes a `BridgeError` on the host: it crosses as a failure
of the cell), the session is over (`SessionLost`), or the caller asked for something impossible (the rest). Of what a
kernel wrote, messages hold only what a terminal may be shown; attributes hold it as it came.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from kernel_bridge.text import printable

__all__ = [
    "BridgeError",
    "ConfinementUnavailable",
    "KernelDied",
    "KernelUnresponsive",
    "NotSendable",
    "ProtocolViolation",
    "Refusal",
    "SessionBusy",
    "SessionClosed",
    "SessionLost",
    "StartupFailed",
    "SubAgentError",
    "TransientError",
    "is_transient",
    "says_transient",
    "what_to_do",
]


class BridgeError(Exception):
    """Base of everything this package raises on purpose."""


class NotSendable(BridgeError, TypeError):
    """A value cannot cross the process border; nothing was sent.

    Attributes:
        path: where the value sits, such as `examples[3].inputs.image`.
        type: the name of its type.
        reason: why it cannot cross.
    """

    def __init__(self, path: str, type: str, reason: str) -> None:
        self.path = path
        self.type = type
        self.reason = reason
        super().__init__(printable(f"{path or 'the value'} ({type}) cannot be sent: {reason}"))

    def __reduce__(self) -> tuple[object, ...]:
        return (NotSendable, (self.path, self.type, self.reason))


class SessionBusy(BridgeError):
    """A cell is already running in this session; one session runs one cell at a time."""


class SessionClosed(BridgeError):
    """The session was closed; make a new one."""


class Refusal(Exception):
    """Mixed into an exception of a host's tool or meter whose text is written for agent code, and may reach it."""


class SubAgentError(BridgeError, ValueError):
    """A sub-agent asked for by agent code is not available, or could not answer. The agent reads it and can mend it."""


class ConfinementUnavailable(BridgeError):
    """The guarantees asked for cannot all be given on this machine, so no kernel was started.

    Attributes:
        missing: guarantee -> why it cannot be given here.
    """

    def __init__(self, missing: Mapping[str, str]) -> None:
        self.missing = dict(missing)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
        super().__init__(
            f"the kernel was not started, because these guarantees cannot be given here: {reasons}. "
            'Ask for fewer guarantees, or pass confinement="auto" to run with what the machine gives.'
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (ConfinementUnavailable, (self.missing,))


class SessionLost(BridgeError):
    """The session is over and its state is gone.

    Attributes:
        reason: one sentence about what happened.
        exit_code: the kernel's exit status; negative is a signal number; None when it never exited by itself.
        stderr_tail: the last bytes the kernel wrote to its real stderr, as text.
    """

    def __init__(self, reason: str, exit_code: int | None = None, stderr_tail: str = "") -> None:
        self.reason = reason
        self.exit_code = exit_code
        self.stderr_tail = stderr_tail
        tail = f"\nThe kernel's last words on stderr:\n{stderr_tail}" if stderr_tail.strip() else ""
        super().__init__(printable(f"{reason}{tail}"))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason, self.exit_code, self.stderr_tail))


class StartupFailed(SessionLost):
    """The kernel did not come up."""


class KernelDied(SessionLost):
    """The kernel's process ended and the session may not start another."""


class KernelUnresponsive(SessionLost):
    """The kernel's process lived but did not answer: it was killed, and the session may not start another."""


class ProtocolViolation(SessionLost):
    """The kernel sent something that is not one of the agreed messages."""


# What an error of the operating system means: whether it may be gone the next time, and what mends it. The table holds
# what a machine says when it has run out of something. All else is a fact about the machine.


class TransientError(OSError):
    """Something could not be done or found out now, and may be the next time."""


# The error's text in the C library's English, and the remedy. A program that failed reports only its text, and this
# process may have another locale than the program.
_TRANSIENT: Mapping[int, tuple[str, str | None]] = {
    errno.EAGAIN: (
        "Resource temporarily unavailable",
        "the limit of processes or threads (ulimit -u, or the container's) is reached: end some, or raise it",
    ),
    errno.ENOMEM: (
        "Cannot allocate memory",
        "there is no memory left: free some, or raise the limit (ulimit -v, ulimit -d, or the container's)",
    ),
    errno.ENOSPC: (
        "No space left on device",
        "the disk is full: free some space, or name another directory (runtime_dir=, or TMPDIR)",
    ),
    errno.EDQUOT: (
        "Disk quota exceeded",
        "free some space, or name another directory (runtime_dir=, or TMPDIR)",
    ),
    errno.EMFILE: ("Too many open files", "close some, or raise this process's limit (ulimit -n)"),
    errno.ENFILE: ("Too many open files in system", "close some, or raise the limit (sysctl fs.file-max)"),
    errno.EFBIG: ("File too large", "raise the limit of a file's size (ulimit -f)"),
    errno.EINTR: ("Interrupted system call", None),
    errno.EIO: ("Input/output error", None),
    errno.ENOBUFS: ("No buffer space available", None),
    errno.ETXTBSY: ("Text file busy", None),
    errno.ETIMEDOUT: ("Connection timed out", None),
    errno.ESTALE: ("Stale file handle", None),
}
_BY_LIBRARIES: Mapping[str, int] = {  # the same errors in the words of libraries
    "MemoryError": errno.ENOMEM,
    "cannot allocate memory": errno.ENOMEM,
    "failed to map segment": errno.ENOMEM,
    "can't start new thread": errno.EAGAIN,
    "cannot open shared object file: Error 24": errno.EMFILE,  # the dynamic loader has no words of its own for it
    "cannot open shared object file: Error 23": errno.ENFILE,
}


def is_transient(error: BaseException) -> bool:
    """Whether an error says that something has run out, or was not available at this moment."""
    if isinstance(error, (TransientError, MemoryError)):
        return True
    number = error.errno if isinstance(error, OSError) else None
    return says_transient(str(error), number)


def says_transient(reason: str, number: int | None = None) -> bool:
    """The same for the text of an error, with its number where that is known."""
    return bool(_named_in(reason)) if number is None else number in _TRANSIENT


def what_to_do(reason: str) -> str:
    """The remedy for an error in this text, as the end of a sentence; empty where there is none but to try again."""
    remedies = (_TRANSIENT[number][1] for number in _named_in(reason))
    return next((f"; {remedy}" for remedy in remedies if remedy is not None), "")


def _named_in(text: str) -> list[int]:
    """The transient errors that a text names, in the order of the table."""
    found = {number for words, number in _BY_LIBRARIES.items() if words in text}
    return [
        number
        for number, (words, _) in _TRANSIENT.items()
        if number in found or words in text or os.strerror(number) in text
    ]
