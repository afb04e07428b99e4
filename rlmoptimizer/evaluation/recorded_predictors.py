"""Predictors that record their calls: those of a clone that is only run get a subclass, which copies keep."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import dspy
from dspy.primitives.base_module import BaseModule
from dspy.signatures.signature import SignatureMeta
from pydantic_core import PydanticUndefined

from rlmoptimizer.evaluation.step_recorder import RECORDS_MARK, StepCall, Steps, is_recorded

__all__ = ["record_steps"]

_NOT_FIELDS: Final = frozenset({"signature", "demos", "config", "lm", "_trace"})  # arguments of `Predict` itself


class _Maker:
    """Makes an empty predictor: a recording one for a copy, one of the original class when it is unpickled."""

    def __init__(self, recorded: type[Any], unrecorded: type[Any]) -> None:
        self._recorded = recorded
        self._unrecorded = unrecorded

    def __call__(self, *args: Any) -> Any:
        return self._recorded.__new__(self._recorded, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Maker, (self._unrecorded, self._unrecorded)


def record_steps(modules: Iterable[BaseModule], strays: threading.Event) -> None:
    """Have the calls of all predictors among `modules` recorded. For clones that are only run, never returned.

    `strays` is set when one is called where no `Steps` are: in a thread that DSPy's settings do not reach.
    """
    classes: dict[type[Any], type[Any]] = {}
    for module in modules:
        kind = cast("type[Any]", type(module))
        if isinstance(module, dspy.Predict) and not is_recorded(module):
            # A foreign class may refuse to be subclassed; then its calls are recorded from DSPy's trace.
            with contextlib.suppress(Exception):
                if kind not in classes:
                    classes[kind] = _recorded_class(kind, strays)
                object.__setattr__(module, "__class__", classes[kind])


def _recorded_class(kind: type[Any], strays: threading.Event) -> type[Any]:
    """A subclass that looks like `kind` and records its calls."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begun(self, kind.forward, args, kwargs, strays)
        if call is None:
            return kind.forward(self, *args, **kwargs)
        with call, call.steps.adapted():
            outputs = kind.forward(self, *args, **kwargs)
        call.steps.returned(call, outputs)
        return outputs

    async def aforward(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begun(self, kind.aforward, args, kwargs, strays)
        if call is None:
            return await kind.aforward(self, *args, **kwargs)
        with call, call.steps.adapted():
            outputs = await kind.aforward(self, *args, **kwargs)
        call.steps.returned(call, outputs)
        return outputs

    def reduce(self: Any, protocol: Any) -> Any:
        made = cast("Any", kind).__reduce_ex__(self, protocol)
        if isinstance(made, tuple) and getattr(made[0], "__name__", "") == "__newobj__":  # Python's default
            return _Maker(recorded, kind), made[1][1:], *made[2:]
        return made

    # One base and no slots: else Python does not let an object change to it.
    recorded: type[Any] = cast("Any", type(kind))(
        kind.__name__,
        (kind,),
        {
            "__slots__": (),
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
            "__reduce_ex__": reduce,
            "forward": forward,
            "aforward": aforward,
            RECORDS_MARK: True,
        },
    )
    return recorded


def _begun(
    predictor: Any, inner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], strays: threading.Event
) -> StepCall | None:
    steps = Steps.here()
    if steps is None:
        strays.set()
        return None
    signature = kwargs.get("signature") or getattr(predictor, "signature", None)
    named = _named(inner, predictor, args, kwargs) if args else kwargs
    return steps.begin(predictor, signature, _fields(signature, named))


def _fields(signature: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The input fields of a call, with their defaults, out of its arguments."""
    fields = {name: value for name, value in given.items() if name not in _NOT_FIELDS}
    if _may_have_defaults(signature, fields):
        for name, field in getattr(signature, "input_fields", {}).items():
            if name not in fields and field.default is not PydanticUndefined:
                fields[name] = field.default
    return fields


def _may_have_defaults(signature: Any, given: Mapping[str, Any]) -> bool:
    """Whether a field that is not given has a default. DSPy makes `input_fields` anew each time it is asked for."""
    if not isinstance(signature, SignatureMeta):
        return True
    known = cast("Any", signature).model_fields
    return any(field.default is not PydanticUndefined for name, field in known.items() if name not in given)


def _named(function: Any, predictor: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        named = inspect.signature(function).bind_partial(predictor, *args, **kwargs).arguments
    except TypeError:  # the call itself will say why
        return dict(kwargs)
    return {name: value for name, value in named.items() if value is not predictor}
