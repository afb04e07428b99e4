"""Spaces in DSPy's cache: a request made in one of them is answered from no other.

Without them an agent could learn what the validation set holds: it asks the sub-LM a guess, or makes a step repeat one,
and sees by price or time whether that was asked before.

The space is one of DSPy's settings, so it goes where they go, also into threads that DSPy starts. It becomes part of
the cache's keys, in the function that DSPy lets one replace. A later compile finds the entries of a space again, and
nothing of it is sent to a provider.
"""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, cast

import dspy

__all__ = ["SPACE_SETTING", "cache_space", "in_cache_space", "rollout_space"]

SPACE_SETTING: Final = "rlmoptimizer_cache_space"
"""The name of the setting."""

_lock = threading.Lock()


@contextmanager
def cache_space(name: str) -> Generator[None]:
    """In the block, and wherever DSPy's settings go from it, the cache is that of the space `name`."""
    _separate(dspy.cache)
    with dspy.context(**{SPACE_SETTING: name}):
        yield


def rollout_space(number: int) -> AbstractContextManager[None]:
    """In the block, the cache is that of the rollout `number` within the present space; rollout 0 is in that itself.

    So a request that is made again in another rollout is answered anew.
    """
    if not number:
        return nullcontext()
    present = cast("str | None", dspy.settings.get(SPACE_SETTING))
    return cache_space(f"{present or 'rlmoptimizer'} {number}")


def in_cache_space(context: contextvars.Context, name: str) -> contextvars.Context:
    """A copy of `context` that is in the space `name`."""

    def enter() -> contextvars.Context:
        with cache_space(name):
            return contextvars.copy_context()

    return context.copy().run(enter)


class _Keys:
    """A cache's own way to make its keys, with the space in front of them."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self._own = own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key, space = self._own(*args, **kwargs), dspy.settings.get(SPACE_SETTING)
        return key if space is None else f"{space}:{key}"


def _separate(cache: Any) -> None:
    # Not put back: outside of any space the keys are what they were. Looked at anew each time, for the cache may be
    # replaced at any moment (`dspy.configure_cache`).
    if not isinstance(cache.cache_key, _Keys):
        with _lock:
            if not isinstance(cache.cache_key, _Keys):
                cache.cache_key = _Keys(cache.cache_key)
