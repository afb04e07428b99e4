"""Whether the LMs of a setup can be reached: each is asked once."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import dspy

from rlmoptimizer.check.model_meter import ModelMeter
from rlmoptimizer.check.report import LMAsked
from rlmoptimizer.evaluation.step_recorder import describe_error
from rlmoptimizer.lms.failures import failure_kind
from rlmoptimizer.lms.preflight import why_keyless
from rlmoptimizer.records import LM_FAILURES, ROLES, Role, RoleUsage

__all__ = ["ask_lms", "lm_messages"]

_PROMPT: Final = "Reply with the word: ok"


def ask_lms(
    lms: Mapping[Role, Sequence[dspy.BaseLM]], answered: Mapping[str, bool]
) -> tuple[tuple[LMAsked, ...], dict[Role, RoleUsage]]:
    """Ask each LM once, whatever its roles, past DSPy's cache, and say what that used, by role.

    `answered`: models that have answered the program already, and whether their price is known; an LM that is for the
    program alone is not asked once more.
    """
    roles: dict[int, list[Role]] = {}
    known: dict[int, dspy.BaseLM] = {}
    for role in ROLES:
        for lm in lms.get(role, ()):
            known[id(lm)] = lm
            if role not in roles.setdefault(id(lm), []):
                roles[id(lm)].append(role)
    usage: dict[Role, RoleUsage] = {}
    asked: list[LMAsked] = []
    for key, lm in known.items():
        model = _model(lm)
        if roles[key] == ["eval"] and model in answered:
            asked.append(LMAsked(("eval",), model, None, None, None, answered[model]))
            continue
        found, used = _asked(lm, roles[key])
        asked.append(found)
        usage[roles[key][0]] = usage.get(roles[key][0], RoleUsage()) + used
    return tuple(asked), usage


def _model(lm: dspy.BaseLM) -> str:
    return str(getattr(lm, "model", None) or type(lm).__qualname__)


def _asked(lm: dspy.BaseLM, roles: Sequence[Role]) -> tuple[LMAsked, RoleUsage]:
    if (keyless := why_keyless(lm)) is not None:
        return LMAsked(tuple(roles), _model(lm), keyless, "not_configured", None, None), RoleUsage()
    meter = ModelMeter([lm])
    options: dict[str, Any] = {"cache": False} if isinstance(lm, dspy.LM) else {}
    error = kind = None
    started = time.monotonic()
    try:
        with meter.calling(roles[0]):
            cast("Any", lm)(_PROMPT, **options)
    except Exception as failed:  # noqa: BLE001 - an LM may raise anything; the report tells
        error, kind = describe_error(failed), failure_kind(failed) or "unknown"
    used = meter.ledger.usage()[roles[0]]
    priced = None if error is not None else used.calls > 0 and not used.unpriced_calls
    return LMAsked(tuple(roles), _model(lm), error, kind, time.monotonic() - started, priced), used


def lm_messages(asked: Sequence[LMAsked]) -> tuple[list[str], list[str]]:
    """Problems and warnings."""
    problems: list[str] = []
    warnings: list[str] = []
    for lm in asked:
        who = f"the {' and '.join(lm.roles)} LM {lm.model}"
        if lm.error_kind in LM_FAILURES:
            problems.append(f"{who} did not answer: {lm.error}. Look at its name, key and address")
        elif lm.error is not None:  # it may still answer what a compile asks
            warnings.append(f"{who} raised when it was asked for one word: {lm.error}")
    if unpriced := [lm.model for lm in asked if lm.is_priced is False]:
        warnings.append(f"no price is known of {', '.join(unpriced)}, so costs will not be known either")
    return problems, warnings
