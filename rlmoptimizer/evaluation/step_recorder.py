"""Records the steps of a program: what every call of a predictor got and gave.

Inputs are converted when a call begins and outputs when it ends, because programs go on to change the same lists and
predictions. For that the predictors of a clone that is only run get a recording subclass, which copies keep. DSPy's own
trace holds only the calls that returned, and programs may replace it or switch it off; DSPy's callbacks would slow down
every module, adapter and LM.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, cast

import dspy
from dspy.primitives.base_module import BaseModule
from dspy.utils.exceptions import AdapterParseError
from pydantic_core import PydanticUndefined

from kernel_bridge.text import error_text
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.evaluation.fan_out import ItemAbandoned
from rlmoptimizer.evaluation.plain_values import to_plain, without_addresses
from rlmoptimizer.lms.failures import causes
from rlmoptimizer.records import StepTrace
from rlmoptimizer.spending.usage_meter import HeardHistory
from rlmoptimizer.task.copying import copy_of
from rlmoptimizer.task.program import clone

__all__ = ["Steps", "Trace", "describe_error", "plain_record", "record_steps"]

_MARK: Final = "__records_steps__"
_NOT_FIELDS: Final = frozenset({"signature", "demos", "config", "lm", "_trace"})  # arguments of `Predict` itself


@dataclass(slots=True)
class _Call:
    steps: Steps
    predictor: Any
    signature_name: str
    inputs: dict[str, Any]
    kept_inputs: dict[str, Any] | None  # None: the metric does not ask for the trace
    completion: str | None = None
    outer: _Call | None = None

    def __enter__(self) -> None:
        self.outer = _CALL.get()
        _CALL.set(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        _CALL.set(self.outer)  # no token: a coroutine may be closed in another context than it began in
        if error is not None:
            self.steps.failed(self, error)


_CALL: Final[ContextVar[_Call | None]] = ContextVar("rlmoptimizer_step", default=None)


class Steps:
    """The calls of one run of a program, until it is closed. Thread-safe.

    It is a member of DSPy's setting `caller_modules`, which reaches every thread that DSPy's settings reach; DSPy adds
    each answered LM call to the `history` of every member. Once `halt` is set, calls raise `ItemAbandoned`.
    `keeps_copies`: `trace` gets the calls as DSPy's trace would have them, as copies.
    """

    def __init__(self, name_of: Callable[[Any], str], halt: threading.Event, *, keeps_copies: bool = False) -> None:
        self.history = HeardHistory(self._heard)
        self.is_answered = False  # an LM call was answered, made by a step or not
        self.trace: list[tuple[Any, dict[str, Any], Any]] = []  # of the calls that returned
        self._name_of = name_of
        self._halt = halt
        self._keeps_copies = keeps_copies
        self._clones: dict[int, Any] = {}
        self._ended: list[tuple[_Call, dict[str, Any], str | None]] = []
        self._closed = False

    @staticmethod
    def here() -> Steps | None:
        """The recorder of the current run; None outside of one, or where DSPy's settings do not reach."""
        owners: Iterable[Any] = dspy.settings.caller_modules or ()
        return next((owner for owner in owners if isinstance(owner, Steps)), None)

    def begin(self, predictor: Any, signature: Any, inputs: Mapping[str, Any]) -> _Call | None:
        """A call of `predictor` begins; None: the run is over."""
        if self._closed:
            return None
        if self._halt.is_set():
            raise ItemAbandoned
        name = getattr(signature, "__name__", "?")
        kept = copy_of(dict(inputs)) if self._keeps_copies else None
        return _Call(self, predictor, name, plain_record(inputs), kept)

    def returned(self, call: _Call, outputs: Any) -> None:
        if self._halt.is_set():
            raise ItemAbandoned
        if self._closed:
            return
        if call.kept_inputs is not None:
            self.trace.append((self._clone(call.predictor), call.kept_inputs, copy_of(outputs)))
        self._ended.append((call, plain_record(outputs), None))

    def failed(self, call: _Call, error: BaseException) -> None:
        if self._closed or not isinstance(error, (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)):
            return
        response = next((cause.lm_response for cause in causes(error) if isinstance(cause, AdapterParseError)), None)
        if isinstance(response, str):
            call.completion = response
        self._ended.append((call, {}, describe_error(error)))

    def close(self) -> tuple[StepTrace, ...]:
        """All calls that have ended; later ones are not recorded."""
        self._closed = True
        return tuple(
            StepTrace(
                step_index=index,
                step_name=self._name_of(call.predictor),
                signature_name=call.signature_name,
                inputs=call.inputs,
                outputs=outputs,
                error=error,
                completion=None if error is None else call.completion,
            )
            for index, (call, outputs, error) in enumerate(tuple(self._ended))
        )

    def _heard(self, entry: Mapping[str, Any]) -> None:
        if self._closed:
            return
        self.is_answered = True
        call = _CALL.get()
        if call is not None and call.steps is self:
            call.completion = _first_text(entry.get("outputs"))

    def _clone(self, predictor: Any) -> Any:
        if id(predictor) not in self._clones:
            try:
                self._clones[id(predictor)] = clone(predictor)
            except InvalidSetup:
                return predictor
        return self._clones[id(predictor)]

    # Some programs copy or pickle DSPy's settings.
    def __deepcopy__(self, memo: object) -> Steps:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _NoSteps, ()


class _NoSteps:
    """Stands for `Steps` in another process."""

    def __init__(self) -> None:
        self.history = HeardHistory(lambda _: None)


class Trace(list[Any]):
    """DSPy's trace of one run. Calls of predictors that the program makes while it runs are recorded from here."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._steps = steps

    def append(self, step: Any) -> None:
        self._record(step)
        super().append(step)

    def extend(self, steps: Iterable[Any]) -> None:
        for step in steps:
            self.append(step)

    def _record(self, step: Any) -> None:
        if isinstance(step, tuple) and len(cast("tuple[Any, ...]", step)) == 3:
            predictor, inputs, outputs = cast("tuple[Any, Any, Any]", step)
            if isinstance(predictor, dspy.Predict) and not _is_recorded(predictor):
                call = self._steps.begin(predictor, getattr(predictor, "signature", None), dict(inputs))
                if call is not None:
                    self._steps.returned(call, outputs)


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
        if isinstance(module, dspy.Predict) and not _is_recorded(module):
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
        with call:
            outputs = kind.forward(self, *args, **kwargs)
        call.steps.returned(call, outputs)
        return outputs

    async def aforward(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begun(self, kind.aforward, args, kwargs, strays)
        if call is None:
            return await kind.aforward(self, *args, **kwargs)
        with call:
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
            _MARK: True,
        },
    )
    return recorded


def _begun(
    predictor: Any, inner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], strays: threading.Event
) -> _Call | None:
    steps = Steps.here()
    if steps is None:
        strays.set()
        return None
    signature = kwargs.get("signature") or getattr(predictor, "signature", None)
    named = _named(inner, predictor, args, kwargs) if args else kwargs
    return steps.begin(predictor, signature, _fields(signature, named))


def _is_recorded(predictor: Any) -> bool:
    return hasattr(type(predictor), _MARK)


def _fields(signature: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The input fields of a call, with their defaults, out of its arguments."""
    fields = {name: value for name, value in given.items() if name not in _NOT_FIELDS}
    for name, field in getattr(signature, "input_fields", {}).items():
        if name not in fields and field.default is not PydanticUndefined:
            fields[name] = field.default
    return fields


def describe_error(error: BaseException) -> str:
    """ "ExceptionType: message"."""
    text = without_addresses(error_text(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def plain_record(record: Any) -> dict[str, Any]:
    """The fields of a record as plain values; of anything else, its `value`."""
    # The quick way for what nearly every predictor gives; `to_plain` comes to the same.
    plain = to_plain(dict(record.items()) if type(record) is dspy.Prediction else record)
    return plain if isinstance(plain, dict) else {"value": plain}


def _named(function: Any, predictor: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        named = inspect.signature(function).bind_partial(predictor, *args, **kwargs).arguments
    except TypeError:  # the call itself will say why
        return dict(kwargs)
    return {name: value for name, value in named.items() if value is not predictor}


def _first_text(outputs: Any) -> str | None:
    first = outputs[0] if isinstance(outputs, list) and outputs else None
    text = cast("dict[str, Any]", first).get("text") if isinstance(first, dict) else first
    return text if isinstance(text, str) else None
