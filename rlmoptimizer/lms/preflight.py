"""What can be known of an LM before it is called: whether it has a key, and whether its calls will have a price."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
from dspy.lm15 import LMRouter, Message, NotConfiguredError, Response, RouterConfig, Usage

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.records import Role

__all__ = ["calls_as_dspy_does", "check_keys", "check_prices", "why_keyless", "why_unpriced"]

logger = logging.getLogger(__name__)

LMs = Mapping[Role, Sequence[dspy.BaseLM]]


def calls_as_dspy_does(lm: dspy.BaseLM, *more: str) -> bool:
    """Whether `lm` is a `dspy.LM` of which no method that calls it, nor one of `more`, is its own."""
    ways = ("__call__", "acall", "forward", "aforward", *more)
    return isinstance(lm, dspy.LM) and not any(
        getattr(type(lm), name) is not getattr(dspy.LM, name) or name in vars(lm) for name in ways
    )


def _asked_of_dspy(question: Callable[[dspy.LM], str | None], lm: dspy.LM) -> str | None:
    try:
        return question(lm)
    except Exception:  # DSPy's internals, imported by the questions, may change; then only the calls can tell
        logger.debug("What %s lacks cannot be told before it is called", lm.model, exc_info=True)
        return None


# keys


def check_keys(lms: LMs) -> None:
    """Raise `InvalidSetup` for an LM that certainly cannot be asked: it has no key."""
    for role, users in lms.items():
        for lm in users:
            if (reason := why_keyless(lm)) is not None:
                raise InvalidSetup(f"the {role} LM {lm.model} cannot be asked: {reason}")


def why_keyless(lm: dspy.BaseLM) -> str | None:
    """What `lm` lacks that every call needs; None: nothing, or only its calls can tell.

    DSPy's own client is asked, which looks for a key as it would for a call, and no further. LMs that are reached in
    any other way (a custom engine, LiteLLM, a class of one's own) are never judged.
    """
    if not isinstance(lm, dspy.LM) or not calls_as_dspy_does(lm) or not isinstance(lm.engine, str):
        return None
    return _asked_of_dspy(_why_no_client_is_made, lm)


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


# prices


def check_prices(lms: LMs) -> None:
    """Raise `InvalidSetup` for an LM whose calls can never count against a limit in dollars."""
    for role, users in lms.items():
        for lm in users:
            if (reason := why_unpriced(lm)) is not None:
                raise InvalidSetup(
                    f"max_cost_usd must be None, because calls of {lm.model} (the {role} LM) have no price that could "
                    f"be counted: {reason}. Or give it one: make it a subclass of dspy.LM whose update_history(entry) "
                    "sets entry['cost'], in US dollars, before it calls super().update_history(entry)"
                )


def why_unpriced(lm: dspy.BaseLM) -> str | None:
    """Why no call of `lm` will ever have a price; None: it will, or only its calls can tell."""
    if not isinstance(lm, dspy.LM) or not calls_as_dspy_does(lm, "update_history"):
        return None  # it may state a cost in a way of its own
    if not isinstance(lm.engine, str):
        if callable(getattr(lm.engine, "complete_legacy", None)):  # it makes the whole result, cost included
            return None
        return "it is answered by an engine of its own, for which DSPy has no prices"
    return _asked_of_dspy(_why_no_price_is_found, lm)


def _why_no_price_is_found(lm: dspy.LM) -> str | None:
    """What DSPy says of the price of a small answer."""
    from dspy.clients import backend_selection, call_result, capabilities, execution

    if not backend_selection.select_backend(lm).native:
        return None  # LiteLLM has prices of its own
    route: Any = capabilities.resolve(lm)
    usage = Usage(input_tokens=1, output_tokens=1, total_tokens=2)
    message = Message.assistant("a")
    answer = Response(id=None, model=route.model, message=message, finish_reason="stop", usage=usage)
    result = call_result.CallResult()
    execution._price_result(lm, result, answer, route.provider, None)  # pyright: ignore[reportPrivateUsage]
    return None if result.cost is not None else f"DSPy says: {result.cost_details.get('reason', 'no price')}"
