"""What came of trying something on this machine: it works, it is refused, or there was trouble that may pass.

The difference decides what may follow. A refusal is a fact about the machine: it is remembered, and a weaker tier takes
its place. Trouble says nothing about the machine: it is an error, nothing is remembered, and nothing gets weaker by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from kernel_bridge.os_errors import says_transient

__all__ = ["Outcome", "Refused", "Trouble", "Works", "assert_never", "judged"]


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


def judged(reason: str, number: int | None = None) -> Refused | Trouble:
    """Sort the reason for which something did not work, by the number of its error or else by its words."""
    return Trouble(reason) if says_transient(reason, number) else Refused(reason)
