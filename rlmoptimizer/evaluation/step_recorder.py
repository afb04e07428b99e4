"""Records the steps of a program: what every call of a predictor got and gave.

Inputs are converted when a call begins and outputs when it ends, because programs go on to change the same lists and
predictions. For that predictors report their calls themselves (`recorded_predictors`). DSPy's own trace holds only the
calls that returned, and programs may replace it or switch it off; DSPy's callbacks would slow down every module,
adapter and LM.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import dspy
from dspy.utils.exceptions import AdapterParseError

from kernel_bridge.text import cut_middle, error_text
from kernel_bridge.with_dspy.attachment_marks import only_text, only_text_in
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.evaluation.fan_out import Halt, ItemAbandoned
from rlmoptimizer.evaluation.lm_exchange import answer_text, exchange_dict, was_truncated
from rlmoptimizer.evaluation.plain_values import to_plain, without_addresses
from rlmoptimizer.lms.failures import causes
from rlmoptimizer.records import StepTrace
from rlmoptimizer.spending.call_meter import HeardHistory
from rlmoptimizer.task.copying import copy_of
from rlmoptimizer.task.program import clone

__all__ = ["RECORDS_MARK", "StepCall", "Steps", "Trace", "TracedCall", "describe_error", "is_recorded", "plain_record"]

RECORDS_MARK: Final = "__records_steps__"
_MOST_EXCHANGES: Final = 3  # of one call that are kept, where they are
_SHOWN_CHARS: Final = 4_000  # of an answer that is shown beside outputs

TracedCall: TypeAlias = tuple[Any, dict[str, Any], Any]
"""A call as it stands in DSPy's traces: predictor, inputs, prediction."""


@dataclass(slots=True)
class StepCall:
    """One call of a predictor under way. In its block, what LMs answer belongs to it."""

    steps: Steps
    predictor: Any
    step_name: str
    signature_name: str
    inputs: dict[str, Any]
    kept_inputs: dict[str, Any] | None  # None: the metric does not ask for the trace
    answers: int = 0  # of its LM
    completion: str | None = None  # the text of the last one
    first_completion: str | None = None  # of the first one, where there were several
    truncated: bool = False  # one of them was cut
    exchanges: list[dict[str, Any]] | None = None  # None: they are not kept
    outer: StepCall | None = None

    def heard(self, entry: Mapping[str, Any], keeps_request: Callable[[str], bool] | None) -> None:
        """Its LM has answered. There are several answers where DSPy's adapter asks again, or has one read another."""
        if self.answers == 0 and keeps_request is not None and keeps_request(self.step_name):
            self.exchanges = []
        elif self.answers == 1:
            self.first_completion = self.completion
        self.answers += 1
        self.completion = answer_text(entry)
        self.truncated = self.truncated or was_truncated(entry)
        if self.exchanges is not None and len(self.exchanges) < _MOST_EXCHANGES:
            self.exchanges.append(exchange_dict(entry))

    def request(self) -> dict[str, Any] | None:
        """`StepTrace.request`."""
        if not self.exchanges:
            return None
        first, *further = self.exchanges
        return {**first, "further_requests": further} if further else first

    def __enter__(self) -> None:
        self.outer = _CALL.get()
        _CALL.set(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        _CALL.set(self.outer)  # no token: a coroutine may be closed in another context than it began in
        if error is not None:
            self.steps.failed(self, error)


_CALL: Final[ContextVar[StepCall | None]] = ContextVar("rlmoptimizer_step", default=None)


class Steps:
    """The calls of one run of a program, until it is closed. Thread-safe.

    It is a member of DSPy's setting `caller_modules`, which reaches every thread that DSPy's settings reach; DSPy adds
    each answered LM call to the `history` of every member. Once `halt` is set, calls raise `ItemAbandoned`.
    `keeps_copies`: `trace` gets the calls as DSPy's trace would have them, as copies. `keeps_request`: whether to keep
    what is sent in a call of the step of this name, asked when its LM has answered; None: of none.
    `adapters`: that of DSPy's settings, and one that stands for it in each call. The program itself sees the first.
    """

    def __init__(
        self,
        name_of: Callable[[Any], str],
        halt: Halt,
        *,
        keeps_copies: bool = False,
        keeps_request: Callable[[str], bool] | None = None,
        adapters: tuple[Any, Any] = (None, None),
    ) -> None:
        self.is_answered = False  # an LM call was answered, made by a step or not
        self.trace: list[TracedCall] = []  # of the calls that returned
        self.traces: dict[str, list[TracedCall]] = {}  # the same by step
        self._name_of = name_of
        self._halt = halt
        self._keeps_copies = keeps_copies
        self._keeps_request = keeps_request
        self._adapters = adapters
        self._clones: dict[int, Any] = {}
        self._ended: list[tuple[StepCall, dict[str, Any], str | None]] = []
        self._closed = False
        self._lock = threading.Lock()  # of the next one
        self._taken: tuple[StepTrace, ...] | None = None  # None: nobody has closed it yet

    @property
    def history(self) -> HeardHistory:
        return HeardHistory(self._heard)  # made anew, because one that is kept would be a cycle too

    @staticmethod
    def here() -> Steps | None:
        """The recorder of the current run; None outside of one, or where DSPy's settings do not reach."""
        owners: Iterable[Any] = dspy.settings.caller_modules or ()
        for owner in owners:
            if isinstance(owner, Steps):
                return owner
        return None

    def begin(self, predictor: Any, signature: Any, inputs: Mapping[str, Any]) -> StepCall | None:
        """A call of `predictor` begins; None: the run is over."""
        if self._closed:
            return None
        if self._halt.is_set():
            raise ItemAbandoned
        name = getattr(signature, "__name__", "?")
        kept = copy_of(dict(inputs)) if self._keeps_copies else None
        return StepCall(self, predictor, self._name_of(predictor), name, plain_record(inputs), kept)

    def adapted(self) -> AbstractContextManager[Any]:
        """For the block of a call. Where the program has set an adapter of its own, that one stays."""
        own, stand_in = self._adapters
        if stand_in is own or dspy.settings.adapter is not own:
            return nullcontext()
        return cast("AbstractContextManager[Any]", dspy.context(adapter=stand_in))

    def returned(self, call: StepCall, outputs: Any) -> None:
        """A call has returned. What its LM has answered is text only from here on, before the program gets it."""
        if self._halt.is_set():
            raise ItemAbandoned
        _keep_text_only(outputs)
        if self._closed:
            return
        if call.kept_inputs is not None:
            traced = (self._clone(call.predictor), call.kept_inputs, copy_of(outputs))
            self.trace.append(traced)
            self.traces.setdefault(call.step_name, []).append(traced)
        self._ended.append((call, plain_record(outputs), None))

    def failed(self, call: StepCall, error: BaseException) -> None:
        if self._closed or not isinstance(error, (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)):
            return
        response = next((cause.lm_response for cause in causes(error) if isinstance(cause, AdapterParseError)), None)
        if isinstance(response, str):
            call.completion = response
        self._ended.append((call, {}, describe_error(error)))

    def close(self) -> tuple[StepTrace, ...]:
        """All calls that have ended, always the same; later ones are not recorded."""
        self._closed = True
        with self._lock:
            if self._taken is None:
                self._taken = tuple(_step_trace(index, *ended) for index, ended in enumerate(self._ended))
                self._ended = []  # they know this recorder: a cycle is left to the garbage collector
            return self._taken

    def _heard(self, entry: Mapping[str, Any]) -> None:
        if self._closed:
            return
        self.is_answered = True
        call = _CALL.get()
        if call is not None and call.steps is self:
            call.heard(entry, self._keeps_request)

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
            if isinstance(predictor, dspy.Predict) and not is_recorded(predictor):
                call = self._steps.begin(predictor, getattr(predictor, "signature", None), dict(inputs))
                if call is not None:
                    self._steps.returned(call, outputs)


def is_recorded(predictor: Any) -> bool:
    return hasattr(type(predictor), RECORDS_MARK)


def describe_error(error: BaseException) -> str:
    """ "ExceptionType: message"."""
    text = without_addresses(error_text(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def plain_record(record: Any) -> dict[str, Any]:
    """The fields of a record as plain values; of anything else, its `value`."""
    # The quick way for what nearly every predictor gives; `to_plain` comes to the same.
    plain = to_plain(dict(record.items()) if type(record) is dspy.Prediction else record)
    return plain if isinstance(plain, dict) else {"value": plain}


def _keep_text_only(outputs: Any) -> None:
    """Break the marks of attachments, in place: the next step would send as an image what an LM wrote."""
    if not isinstance(outputs, dspy.Prediction):
        return
    for name, value in outputs.items(include_dspy=True):
        if _has_mark(value):
            outputs[name] = only_text_in(value)
    completions = cast("Any", outputs.completions)
    if completions is not None:
        for _, values in completions.items():
            if _has_mark(values):
                values[:] = [only_text_in(value) if _has_mark(value) else value for value in values]


def _has_mark(value: Any) -> bool:
    if isinstance(value, str):
        return only_text(value) != value
    if isinstance(value, dict):
        return any(_has_mark(part) for item in cast("dict[Any, Any]", value).items() for part in item)
    return isinstance(value, list) and any(map(_has_mark, cast("list[Any]", value)))


def _step_trace(index: int, call: StepCall, outputs: dict[str, Any], error: str | None) -> StepTrace:
    return StepTrace(
        step_index=index,
        step_name=call.step_name,
        signature_name=call.signature_name,
        inputs=call.inputs,
        outputs=outputs,
        error=error,
        completion=_shown_completion(call, outputs, error),
        first_completion=_first_completion(call),
        truncated=call.truncated,
        request=call.request(),
    )


def _shown_completion(call: StepCall, outputs: Mapping[str, Any], error: str | None) -> str | None:
    """What its LM wrote, where the outputs do not tell: the call failed, was cut, or left an output empty."""
    if error is not None:
        return call.completion
    is_empty = any(value is None or value == "" for value in outputs.values())
    shown = call.completion if is_empty or call.truncated else None
    return None if shown is None else cut_middle(shown, _SHOWN_CHARS)


def _first_completion(call: StepCall) -> str | None:
    first = call.first_completion
    return None if first is None or first == call.completion else cut_middle(first, _SHOWN_CHARS)
