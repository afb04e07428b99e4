"""Call meters hear of the LM calls that DSPy makes, by role. What becomes of the calls is a subclass's affair.

A role is two of DSPy's settings, so it goes where they go, into threads and async calls, and two roles may share an LM.
One is an owner of history entries, the only place where DSPy says what a call cost. The other is a usage tracker, which
DSPy tells what was billed: an answer from its cache was not. Both hear of a call when it is over, in the thread that
made it. DSPy's callbacks would do too, but each slows down every call of every module, adapter and LM by half.
"""

# DSPy ships no type information; what is used of it here is cast where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import dspy
from dspy.clients.base_lm import GLOBAL_HISTORY
from dspy.lm15 import Response
from dspy.utils.usage_tracker import UsageTracker

from rlmoptimizer.records import LMCall, Role, picodollars

__all__ = ["CallMeter", "HeardCall", "HeardHistory", "KeptCalls"]

# The histories that are kept: what DSPy is set to keep, or "own", which are all but the one of the whole process.
_Keeps: TypeAlias = Literal["all", "own", "global", "nothing"]

_PROMPT: Final = ("prompt_tokens", "input_tokens")  # the Responses API has names of its own
_COMPLETION: Final = ("completion_tokens", "output_tokens")


class HeardHistory:
    """In the place of the list to which DSPy appends an LM's calls: `heard` gets each entry, and none is kept."""

    def __init__(self, heard: Callable[[dict[str, Any]], None]) -> None:
        self.append = heard

    def __len__(self) -> int:
        return 0  # never too long, whatever DSPy's limit is


class CallMeter:
    """Hears of every LM call that was answered within `role`. Thread-safe. A subclass says what becomes of them.

    Seen are calls of every LM that writes DSPy's history, as all LMs do that are called through `dspy.BaseLM`. Not seen
    are calls that raise, calls in other processes, and calls in threads to which DSPy's settings were not handed on.
    `lms`: those whose own history must be kept clean where DSPy is set to keep none. `keeps_global` False: DSPy's
    history of the whole process is kept clean too.
    """

    def __init__(self, lms: Iterable[dspy.BaseLM] = (), *, keeps_global: bool = True) -> None:
        self._lms = tuple(lms)
        self._all: _Keeps = "all" if keeps_global else "own"
        self._lock = threading.Lock()

    @contextmanager
    def role(self, role: Role) -> Generator[None]:
        """LM calls made in the block, or in a context copied from it, are calls of `role`; the innermost one counts."""
        settings: Any = dspy.settings
        owners: list[Any] = list(settings.caller_modules or ())
        taps = [owner for owner in owners if isinstance(owner, _Tap)]
        outer = settings.usage_tracker
        if isinstance(outer, _Tap) and outer.meter is self:
            outer = outer.outer
        keeps: _Keeps = self._all
        if taps:
            keeps = taps[-1].keeps
        elif settings.disable_history:
            keeps = "nothing"
        elif settings.max_history_size == 0:
            keeps = "global"
        tap = _Tap(self, role, outer, keeps)
        overrides: dict[str, Any] = {
            "caller_modules": [*(owner for owner in owners if owner not in taps or owner.meter is not self), tap],
            # With `track_usage` every module keeps a tracker of its own and says in its prediction what it used, but
            # only where no tracker is set.
            "usage_tracker": None if outer is None and settings.track_usage else tap,
        }
        if keeps in ("global", "nothing"):
            # The entry is made, read and forgotten.
            overrides |= {"disable_history": False, "max_history_size": sys.maxsize}
        with dspy.context(**overrides):
            yield

    def count(self, call: LMCall, *, why_unpriced: object = None) -> None:
        """Called for each call, in the thread that made it. `why_unpriced`: what DSPy says where it knows no price."""
        raise NotImplementedError

    def forget(self, entry: dict[str, Any], keeps: _Keeps) -> None:
        """Take a history entry out of the histories that are not kept."""
        forgetful = [] if keeps == "own" else [lm.history for lm in self._lms]
        if keeps in ("own", "nothing"):
            forgetful.append(GLOBAL_HISTORY)
        for history in forgetful:
            with self._lock:
                # Newest first and by identity: entries are large to compare.
                for index in range(len(history) - 1, -1, -1):
                    if history[index] is entry:
                        del history[index]
                        break
        if keeps == "nothing":
            # What else holds it, such as the module that made the call, holds nothing then.
            entry.clear()


@dataclass(frozen=True, slots=True)
class HeardCall:
    """A call on its way from the worker that made it to the meter that counts it."""

    call: LMCall
    why_unpriced: str | None


class KeptCalls(CallMeter):
    """Keeps the calls of one example in a worker until they are told; later ones go to `late`. Thread-safe."""

    def __init__(self, lms: Iterable[dspy.BaseLM], late: Callable[[HeardCall], None]) -> None:
        super().__init__(lms, keeps_global=False)  # nobody looks into that of a worker, where it would only grow
        self._calls: list[HeardCall] = []  # under `_lock`, as the next
        self._told = False
        self._late = late

    def count(self, call: LMCall, *, why_unpriced: object = None) -> None:
        heard = HeardCall(call, None if why_unpriced is None else str(why_unpriced))
        with self._lock:
            if not self._told:
                self._calls.append(heard)
                return
        self._late(heard)

    def tell(self) -> list[HeardCall]:
        """All so far."""
        with self._lock:
            self._told = True
            return self._calls


class _Tap(UsageTracker):
    """One role at one place: an owner of history entries and a usage tracker of DSPy's."""

    def __init__(self, meter: CallMeter, role: Role, outer: Any, keeps: _Keeps) -> None:
        self.outer = outer  # the tracker that was set before; it is told everything too
        self.keeps: _Keeps = keeps
        self.history = HeardHistory(self._called)
        self.meter = meter
        self._role: Role = role
        # DSPy tells of what was billed and of the call one right after the other, on one thread.
        self._billed = threading.local()

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        self._billed.usage = usage_entry
        if self.outer is not None:
            self.outer.add_usage(lm, usage_entry)

    @property
    def usage_data(self) -> defaultdict[str, list[Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        # Where a program's own tracker puts what it has seen when it ends.
        return defaultdict(list) if self.outer is None else self.outer.usage_data

    # A thread of DSPy's would get a copy of the tracker otherwise, which nobody looks into.
    def __deepcopy__(self, memo: object) -> _Tap:
        return self

    def _called(self, entry: dict[str, Any]) -> None:
        billed = getattr(self._billed, "usage", None) if self._hears() else _UNHEARD
        self._billed.usage = None
        reason: object = None
        try:
            call = _read_call(self._role, entry, billed)
            reason = (entry.get("cost_details") or {}).get("reason")
        except Exception as error:  # noqa: BLE001 - an LM writes into it what it likes; the call was made all the same
            call = LMCall(self._role, "unknown", "answered", None, None, None)
            reason = f"its entry in the history cannot be read: {type(error).__name__}"
        if self.keeps != "all" and self._is_innermost():
            self.meter.forget(entry, self.keeps)
        self.meter.count(call, why_unpriced=reason)

    def _hears(self) -> bool:
        """Whether it is told of bills here; a program may have set a tracker of its own, which tells it later."""
        tracker = dspy.settings.usage_tracker
        while isinstance(tracker, _Tap) and tracker is not self:
            tracker = tracker.outer
        return tracker is self

    def _is_innermost(self) -> bool:
        """Whether no tap of another meter is still to read the entry."""
        return [owner for owner in dspy.settings.caller_modules if isinstance(owner, _Tap)][-1] is self


_UNHEARD: Final = object()  # in the place of a bill: the tracker was not set


def _read_call(role: Role, entry: Mapping[str, Any], billed: object) -> LMCall:
    model = str(entry.get("model") or "unknown")
    if _is_cached(entry, billed):
        return LMCall(role, model, "cached", 0, 0, 0)
    usage: Mapping[str, Any] = entry.get("usage") or {}
    cost = picodollars(entry.get("cost"))
    return LMCall(role, model, "answered", _tokens(usage, _PROMPT), _tokens(usage, _COMPLETION), cost)


def _is_cached(entry: Mapping[str, Any], billed: object) -> bool:
    """Whether DSPy took the answer from its cache. Its entry looks like that of a call then, but for an empty usage."""
    if entry.get("usage"):
        return False
    answers: Any = entry.get("response")
    for answer in (entry, *(answers if isinstance(answers, tuple) else (answers,))):
        known = answer.get("cache_hit") if isinstance(answer, Mapping) else getattr(answer, "cache_hit", False)
        # The usage that the answer had when it was new. An entry of DSPy's own takes it over from a new answer.
        if known is True or (isinstance(answer, Response) and _has_tokens(answer)):
            return True
    # No usage was ever reported: then only the tracker knows, of entries that DSPy has made itself.
    return billed is not _UNHEARD and billed != {} and entry.get("cost") is None and "cost_details" in entry


def _has_tokens(answer: Response) -> bool:
    return answer.usage.input_tokens is not None or answer.usage.output_tokens is not None


def _tokens(usage: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    reported = (usage.get(name) for name in names)
    return next((count for count in reported if type(count) is int and count >= 0), None)
