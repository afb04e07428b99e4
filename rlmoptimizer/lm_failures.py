"""What an LM failed of: DSPy's codes of errors, and which of them say nothing about who asked. Knows no programs."""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from dspy.utils.exceptions import LMError

__all__ = ["LM_FAILURES", "causes", "failure_kind"]

LM_FAILURES: Final = frozenset(
    {
        "rate_limit",
        "timeout",
        "transport",  # no connection, or a broken one
        "server",  # 5xx
        "lock_timeout",
        "auth",
        "billing",
        "not_configured",
        "configuration",
        "unsupported_model",
    }
)
"""Kinds of errors that say nothing about the program: an LM could not be reached, or would not serve us."""


def failure_kind(error: BaseException) -> str | None:
    """DSPy's code of the LM's error that this one is, or came from; None: no LM failed."""
    return next((_exact_kind(cause) for cause in causes(error) if isinstance(cause, LMError)), None)


def _exact_kind(error: LMError) -> str:
    """DSPy's code, made more exact where DSPy does not know what its LM's own error means."""
    for cause in causes(error):
        status: Any = getattr(cause, "status", None) or getattr(cause, "status_code", None)
        code = getattr(type(cause), "default_code", None) if isinstance(cause, LMError) else None
        if code == "transport" and any(isinstance(deeper, TimeoutError) for deeper in causes(cause)):
            return "timeout"  # DSPy's own client calls a read that timed out a broken connection
        if code in LM_FAILURES:
            return code
        if isinstance(cause, TimeoutError):
            return "timeout"
        if isinstance(cause, ConnectionError):
            return "transport"
        if isinstance(status, int) and (status == 429 or 500 <= status <= 599):
            return "rate_limit" if status == 429 else "server"
    return type(error).default_code or "lm_error"


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, the nearest first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ if cause.__suppress_context__ else cause.__cause__ or cause.__context__
