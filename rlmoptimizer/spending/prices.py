"""Prices: whether DSPy can know what an LM's calls cost, before one is made. Knows no amounts."""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import dspy
from dspy.lm15 import Message, Response, Usage

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.records import Role

__all__ = ["check_priced", "why_unpriced"]

logger = logging.getLogger(__name__)

# A class with one of these of its own may state a cost in a way of its own.
_OWN_WAYS: Final = ("__call__", "acall", "forward", "aforward", "update_history")


def check_priced(lms: Mapping[Role, Sequence[dspy.BaseLM]]) -> None:
    """Raise `InvalidSetup` for an LM whose calls can never count against a limit in dollars."""
    for role, users in lms.items():
        for lm in users:
            reason = why_unpriced(lm)
            if reason is not None:
                raise InvalidSetup(
                    f"max_cost_usd must be None, because calls of {lm.model} (the {role} LM) have no price that could "
                    f"be counted: {reason}. Or give it one: make it a subclass of dspy.LM whose update_history(entry) "
                    "sets entry['cost'], in US dollars, before it calls super().update_history(entry)"
                )


def why_unpriced(lm: dspy.BaseLM) -> str | None:
    """Why no call of `lm` will ever have a price; None: it will, or only its calls can tell."""
    ways = (name for name in _OWN_WAYS if getattr(type(lm), name) is not getattr(dspy.LM, name) or name in vars(lm))
    if not isinstance(lm, dspy.LM) or any(ways):
        return None
    if not isinstance(lm.engine, str):
        if callable(getattr(lm.engine, "complete_legacy", None)):  # it makes the whole result, cost included
            return None
        return "it is answered by an engine of its own, for which DSPy has no prices"
    try:
        return _why_no_price_is_found(lm)
    except Exception:  # DSPy's internals, which may change; then only the calls can tell
        logger.debug("Whether %s has a price cannot be told before it is called", lm.model, exc_info=True)
        return None


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
