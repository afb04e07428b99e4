"""Why an LM failed: DSPy's error codes, and the line in which a person is told."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

from dspy.utils.exceptions import LMError

from kernel_bridge.text import printable, printable_line
from rlmoptimizer.records import LM_FAILURES

__all__ = ["causes", "failure_kind", "failure_line", "note_role", "without_traceback"]

_WORDS: Final = {
    "rate_limit": "takes no more requests for now",
    "timeout": "has not answered in time",
    "transport": "cannot be reached",
    "server": "is out of order",
    "lock_timeout": "cannot be asked",
    "auth": "does not accept its key",
    "billing": "is not paid for",
    "not_configured": "is not set up",
    "configuration": "is not set up",
    "unsupported_model": "is not there",
}
_MESSAGE_CHARS: Final = 2000  # of an error's text; a proxy may answer with a whole page


@contextmanager
def note_role(role: str) -> Generator[None]:
    """Note on an LM's error in the block which role the LM was asked for."""
    try:
        yield
    except LMError as error:
        if not hasattr(error, "note_role"):
            error.note_role = role  # pyright: ignore[reportAttributeAccessIssue]
        raise


def failure_line(error: BaseException) -> str | None:
    """One line that says which LM was not available and why; None: it is another kind of error."""
    kind = failure_kind(error) if isinstance(error, LMError) else None
    if kind not in LM_FAILURES:
        return None
    facts: dict[str, Any] = vars(error)
    model = facts.get("model") or ""
    who = " ".join(str(part) for part in ("the", facts.get("note_role"), "LM", model) if part)
    head, told = f"{who} {_WORDS.get(kind, 'failed')} ({kind})", str(error).removeprefix(f"[{model}] ")
    return printable_line(f"{head}: {told.strip().partition(chr(10))[0]}")


def without_traceback(error: BaseException) -> BaseException:
    """The same error, for which Python prints little more than its text. Its `__context__` keeps causes and frames."""
    error.__context__ = error.__cause__ or error.__context__
    error.__cause__, error.__suppress_context__ = None, True
    error.args = tuple(map(_brief, error.args))
    facts: dict[str, Any] = vars(error)
    if "message" in facts:  # of which DSPy's errors make their text
        facts["message"] = _brief(facts["message"])
    return error.with_traceback(None)


def _brief(value: Any) -> Any:
    return printable(value, _MESSAGE_CHARS) if isinstance(value, str) else value


def failure_kind(error: BaseException) -> str | None:
    """DSPy's code of the LM error that this one is or was caused by; None: no LM failed."""
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
    """An error and its causes, the nearest first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ if cause.__suppress_context__ else cause.__cause__ or cause.__context__
