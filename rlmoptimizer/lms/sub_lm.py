"""The sub-LM as DSPy's agents call it: what it is sent, and what is entered around each call."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import dspy

from rlmoptimizer.lms.attachment_marks import text_messages
from rlmoptimizer.lms.cache_space import cache_space

try:
    from dspy.clients._deprecation import adapter_message_call as _marked_as_an_adapters
except ImportError:  # DSPy 3.5 drops it together with the warning
    _marked_as_an_adapters = None

__all__ = ["SubLM"]

_SPACE = "rlmoptimizer sub"  # of DSPy's cache


class SubLM:
    """An LM that takes the message lists of DSPy's sub-agents without a deprecation warning; else the LM itself.

    `asking(n)` is entered around every call, for `n` completions. Its answers are kept in a part of DSPy's cache that
    is their own: a prompt that was asked of the same LM by a program, and not by an agent, is asked anew.

    DSPy 3.4 wraps the LM of sub-agents and then no longer recognizes the calls of its own adapter. It warns about their
    messages, in the name of the code that called a tool. Where warnings are errors, no sub-agent would run.
    """

    def __init__(self, lm: dspy.BaseLM, asking: Callable[[int], AbstractContextManager[None]]) -> None:
        self._lm = lm
        self._asking = asking

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = _text_only(kwargs)
        with self._asking(self._completions(kwargs)), cache_space(_SPACE), self._marked(kwargs):
            try:
                return self._lm(*args, **kwargs)
            except (SystemExit, GeneratorExit, asyncio.CancelledError) as error:  # of the LM's own code
                raise dspy.LMError(f"the sub-LM raised {type(error).__name__}: {error}") from error

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = _text_only(kwargs)
        with self._asking(self._completions(kwargs)), cache_space(_SPACE), self._marked(kwargs):
            try:
                return await self._lm.acall(*args, **kwargs)
            except SystemExit as error:
                raise dspy.LMError(f"the sub-LM raised SystemExit: {error}") from error

    def copy(self, **kwargs: Any) -> SubLM:
        return SubLM(self._lm.copy(**kwargs), self._asking)

    def __getattr__(self, name: str) -> Any:
        if name == "_lm":  # not there yet: while being copied or unpickled
            raise AttributeError(name)
        return getattr(self._lm, name)

    def _completions(self, kwargs: dict[str, Any]) -> int:
        # Counted as DSPy reserves them. A prompt of `llm_query` has no options, and is one whatever the LM is set to.
        return max(1, int(kwargs.get("n", self._lm.kwargs.get("n") if kwargs else 1) or 1))

    def _marked(self, kwargs: dict[str, Any]) -> AbstractContextManager[Any]:
        if _marked_as_an_adapters is None:
            return nullcontext()
        return _marked_as_an_adapters(self._lm, kwargs.get("messages"))


def _text_only(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "messages": text_messages(kwargs["messages"])} if "messages" in kwargs else kwargs
