"""Keys: whether an LM has what it needs to be asked, before it is. Asks no provider and knows no optimizer."""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import dspy
from dspy.lm15 import LMRouter, NotConfiguredError, RouterConfig

from rlmoptimizer.errors import InvalidSetup

__all__ = ["check_keys", "lms_without_own_keys", "why_keyless"]

logger = logging.getLogger(__name__)

# A class with one of these of its own reaches its provider in a way of its own.
_OWN_WAYS: Final = ("__call__", "acall", "forward", "aforward")
_CONNECTION: Final = frozenset({"api_key", "api_base", "base_url", "headers", "extra_headers"})


def check_keys(lms: Mapping[str, Sequence[dspy.BaseLM]]) -> None:
    """Raise `InvalidSetup` for an LM, under its role, that certainly cannot be asked: it has no key."""
    for role, users in lms.items():
        for lm in users:
            reason = why_keyless(lm)
            if reason is not None:
                raise InvalidSetup(f"the {role} LM {lm.model} cannot be asked: {reason}")


def lms_without_own_keys(student: dspy.Module, eval_lm: dspy.BaseLM | None) -> list[dspy.BaseLM]:
    """The LMs that answer the program's predictors, without those that a predictor gives a connection of its own."""
    predictors = [each for each in student.predictors() if not _CONNECTION & set(getattr(each, "config", None) or ())]
    lms: list[Any] = [getattr(each, "lm", None) or eval_lm for each in predictors]
    return [lm for lm in lms if isinstance(lm, dspy.BaseLM)]


def why_keyless(lm: dspy.BaseLM) -> str | None:
    """What `lm` lacks that every call needs; None: nothing, or only its calls can tell.

    DSPy's own client is asked, which looks for a key as it would for a call, and no further. LMs that are reached in
    any other way (a custom engine, LiteLLM, a class of one's own) are never judged.
    """
    own = (name for name in _OWN_WAYS if getattr(type(lm), name) is not getattr(dspy.LM, name) or name in vars(lm))
    if not isinstance(lm, dspy.LM) or any(own) or not isinstance(lm.engine, str):
        return None
    try:
        return _why_no_client_is_made(lm)
    except Exception:  # DSPy's internals, which may change; then only the calls can tell
        logger.debug("Whether %s has a key cannot be told before it is called", lm.model, exc_info=True)
        return None


def _why_no_client_is_made(lm: dspy.LM) -> str | None:
    from dspy.clients.backend_selection import select_backend

    chosen = select_backend(lm)
    route: Any = chosen.resolution
    if not chosen.native or route is None or route.credential_policy != "key" or route.declared:
        return None
    clients: Mapping[str, Any] = chosen.clients
    if "api_base" in clients or "base_url" in clients:
        return None  # a server of one's own, which may want no key
    try:
        config = RouterConfig(api_keys={route.provider: clients["api_key"]} if "api_key" in clients else None)
        with LMRouter(config) as router:
            router.lm(f"{route.provider}:{route.model}")
    except NotConfiguredError as missing:
        names = tuple(getattr(missing, "env_keys", None) or ())
        if not names:
            empty = "its api_key is empty; pass a key, or leave it out to have it read from the environment"
            return empty if "api_key" in clients else str(missing).partition("\n")[0]
        return (
            f"it has no key. Set {' or '.join(names)} in the environment, or pass api_key=... to its dspy.LM (any text "
            "will do where no key is wanted, or all answers come from DSPy's cache)"
        )
    return None
