"""What came of trying something on this machine: it works, it is refused, or there was trouble that may pass.

The difference decides what may follow. A refusal is a fact about the machine: it is remembered, and a weaker tier takes
its place. Trouble says nothing about the machine: it is an error, nothing is remembered, and nothing gets weaker by it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

__all__ = [
    "Outcome",
    "PassingTrouble",
    "Refused",
    "Trouble",
    "Works",
    "assert_never",
    "is_passing",
    "judged",
    "what_to_do",
]


@dataclass(frozen=True, slots=True)
class Works:
    """It was done, and it went well."""


@dataclass(frozen=True, slots=True)
class Refused:
    """This machine does not do it, now or later."""

    reason: str  # as a clause


@dataclass(frozen=True, slots=True)
class Trouble:
    """It could not be found out now."""

    reason: str  # as a clause


Outcome = Works | Refused | Trouble


def assert_never(value: NoReturn) -> NoReturn:
    """Where a type checker sees that no case was forgotten. Python has it from 3.11 on."""
    raise AssertionError(f"an outcome of no known kind: {value!r}")


class PassingTrouble(OSError):
    """Something could not be found out now, and may be the next time."""


# What a machine says when it has run out of something, and what mends that. All else is a fact about the machine.
# With the C library's own words: a program tells no more, and this process may speak another language.
_PASSING: Mapping[int, tuple[str, str | None]] = {
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
_SPOKEN: Mapping[str, int] = {  # by libraries, in words of their own
    "MemoryError": errno.ENOMEM,
    "cannot allocate memory": errno.ENOMEM,
    "failed to map segment": errno.ENOMEM,
    "can't start new thread": errno.EAGAIN,
}


def is_passing(error: BaseException) -> bool:
    """Whether an error says that something has run out, or was not to be had at this moment."""
    if isinstance(error, OSError) and error.errno is not None:
        return isinstance(error, PassingTrouble) or error.errno in _PASSING
    return isinstance(error, (PassingTrouble, MemoryError)) or _says_passing(str(error))


def judged(reason: str, number: int | None = None) -> Refused | Trouble:
    """Sort the reason for which something did not work, by the number of its error or else by its words."""
    passing = _says_passing(reason) if number is None else number in _PASSING
    return Trouble(reason) if passing else Refused(reason)


def what_to_do(reason: str) -> str:
    """The cure for a trouble, as the end of a sentence; empty where there is none but to try again."""
    spoken = {number for words, number in _SPOKEN.items() if words in reason}
    stands = (cure for number, (_, cure) in _PASSING.items() if number in spoken or _stands_in(number, reason))
    cures = (cure for cure in stands if cure is not None)
    found = next(cures, None)
    return "" if found is None else f"; {found}"


def _says_passing(words: str) -> bool:
    return any(_stands_in(number, words) for number in _PASSING) or any(spoken in words for spoken in _SPOKEN)


def _stands_in(number: int, words: str) -> bool:
    return _PASSING[number][0] in words or os.strerror(number) in words
