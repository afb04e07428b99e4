"""What a kernel is told of an error of a sub-agent: words of ours, and nothing of the host's."""

from __future__ import annotations

import logging
import re

from dspy.primitives.code_interpreter import CodeInterpreterError
from dspy.utils.exceptions import AdapterParseError, LMError

from kernel_bridge.errors import Refusal, SubAgentError
from kernel_bridge.text import traceback_shown

__all__ = ["LONGEST_ANSWER", "refusal"]

logger = logging.getLogger(__name__)

_LM_FAILED = re.compile(r"\[dspy bridge lm-error #\d+\]")  # dspy.Flex raises the LM's own error when it reads this
_NO_MORE_CALLS = re.compile(r"LLM call limit exceeded: \d+ \+ \d+ > \d+\.")
_NO_MORE_PREDICTIONS = re.compile(r"Sandboxed forward exceeded its predictor-call budget \(\d+\)\.")
LONGEST_ANSWER = 2000  # characters of what an LM or a tool has said, to another one


def refusal(error: BaseException, kind: str) -> Exception:
    """What a kernel is told of an error of a sub-agent: nothing of the host's, whatever is in the error's text."""
    if isinstance(error, (SubAgentError, Refusal)):
        return error
    if isinstance(error, AdapterParseError):
        answer = error.lm_response
        shown = answer[:LONGEST_ANSWER] if isinstance(answer, str) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
        return SubAgentError(f"the LM's answer to dspy.{kind} could not be read as its output fields. It was: {shown}")
    if isinstance(error, CodeInterpreterError) and isinstance(error.__cause__, LMError):
        tag = _LM_FAILED.match(str(error))
        mark = "" if tag is None else f"{tag.group()} "
        return SubAgentError(f"{mark}the LM of dspy.{kind} failed: {_class(error.__cause__)}")
    for known in (_NO_MORE_CALLS, _NO_MORE_PREDICTIONS):
        if (found := known.match(str(error))) is not None:
            return SubAgentError(found.group())
    logger.info("A sub-agent (dspy.%s) failed:\n%s", kind, traceback_shown(error))
    return SubAgentError(f"dspy.{kind} failed on the host: {_class(error)}")


def _class(error: BaseException) -> str:
    """The name of an exception's class, where that is Python's or DSPy's own."""
    kind = type(error)
    return kind.__name__ if kind.__module__.partition(".")[0] in ("builtins", "dspy", "pydantic_core") else "Exception"
