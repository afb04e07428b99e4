"""What an error of the operating system means: whether it may be gone the next time, and what mends it.

The table holds what a machine says when it has run out of something. All else is a fact about the machine.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

__all__ = ["TransientError", "is_transient", "says_transient", "what_to_do"]


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
}


def is_transient(error: BaseException) -> bool:
    """Whether an error says that something has run out, or could not be had at this moment."""
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
