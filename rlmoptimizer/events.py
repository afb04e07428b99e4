"""Events: what happens while a program is optimized, and the one emitter.

An event holds nothing of the validation set but scores and counts, so an observer may show or keep all of them. Scores
are fractions 0..1, times are seconds.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from kernel_bridge.text import traceback_shown

__all__ = [
    "AgentSubmitted",
    "Branched",
    "BudgetCharged",
    "CompileFinished",
    "CompileResumed",
    "CompileStarted",
    "Emitter",
    "EvaluationFinished",
    "EvaluationStarted",
    "Event",
    "ExamplesScored",
    "FellBack",
    "KernelDied",
    "KernelStarted",
    "LMUsageCounted",
    "NoteGiven",
    "Observer",
    "PhaseFinished",
    "PhaseStarted",
    "PromptUpdated",
    "StillWaiting",
    "StopRequested",
    "SubmissionRefused",
    "TurnFinished",
    "TurnStarted",
    "WorkPaused",
    "WorkUnpaused",
]

logger = logging.getLogger(__name__)

Split: TypeAlias = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class CompileStarted:
    steps: tuple[str, ...]  # step names in the program's order
    train_count: int
    val_count: int  # 0: no validation set
    budget: int  # units
    test_count: int = 0  # 0: no test set
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, Any])  # "root", "sub", "eval" -> models
    metric: str = ""  # its name
    max_cost_usd: float | None = None  # None: no limit
    store: str = ""  # path of the run store
    is_kept: bool = True  # False: the store is removed when `compile` ends
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])  # of the program as it was given, by step
    executor: str = ""  # where the examples run, or what makes it; "": threads of this process


@dataclass(frozen=True, slots=True)
class CompileResumed:
    """After `CompileStarted`, when earlier processes have begun the work."""

    turns: int  # of the agent, the one that was cut included
    runs: int
    left: int  # budget units
    best: tuple[float, str] | None = None  # on all of val (train without one): a score and its run; None: no run ended


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    phase: str  # "baseline", "agent", "final_check" or "test"


@dataclass(frozen=True, slots=True)
class PhaseFinished:
    phase: str
    seconds: float  # in this process


@dataclass(frozen=True, slots=True)
class KernelStarted:
    """The agent's interpreter runs; told after the baseline, during which it starts, and again after a death."""

    interpreter: str  # the name of its class
    summary: str  # what it runs under, in one line
    tier: str | None  # how it is confined: a key of `kernel_bridge.confine.TIERS`; None: not, or it does not say
    requested: tuple[str, ...] = ()  # guarantees that had to hold
    in_force: Mapping[str, str] = field(default_factory=dict[str, str])  # guarantee -> the mechanism that gives it
    missing: Mapping[str, str] = field(default_factory=dict[str, str])  # guarantee -> why it is not given
    connection_file: str | None = None  # what a Jupyter console attaches to; None: the interpreter has none


@dataclass(frozen=True, slots=True)
class KernelDied:
    """The agent's kernel died under a cell. `KernelStarted` follows when there is a successor."""

    turn: int
    reason: str  # as the agent reads it; it may quote what the kernel wrote


@dataclass(frozen=True, slots=True)
class EvaluationStarted:
    run_id: str
    split: Split
    total: int  # examples that will be evaluated
    baseline: bool


@dataclass(frozen=True, slots=True)
class ExamplesScored:
    """More examples of a run have their scores: one or several at once, from the thread that stores them."""

    run_id: str
    split: Split
    done: int
    total: int
    mean_score: float  # of the `done` examples so far


@dataclass(frozen=True, slots=True)
class EvaluationFinished:
    """A run has ended. A cancelled or failed one has `done < total` or `score is None`."""

    run_id: str
    split: Split
    done: int
    total: int
    passed: int
    score: float | None  # None: the run did not finish
    left: int  # budget units after it


@dataclass(frozen=True, slots=True)
class StillWaiting:
    """Nothing has come for long: no example of a run, no answer of an LM, no kernel, no worker of the executor.

    Again after twice the time.
    """

    waits_for: Literal["examples", "root", "sub", "kernel", "executor"]
    name: str  # the run and its split, or the model; "" for kernel and executor
    pending: int  # examples or prompts that are waited for
    ids: tuple[str, ...]  # of the examples, where the split is train
    seconds: float  # since the last one came, or since the first was begun


@dataclass(frozen=True, slots=True)
class PromptUpdated:
    step: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class BudgetCharged:
    """The agent reached the sub-LM."""

    units: int
    left: int


@dataclass(frozen=True, slots=True)
class LMUsageCounted:
    """What all LM calls so far amount to: after the baseline, and after every turn of the agent."""

    usage: Mapping[str, Mapping[str, Any]]  # as in the result: by role, tokens and US dollars


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The root LM has written code, and the kernel is about to run it.

    A turn whose answer holds nothing that could be run has only its `TurnFinished`.
    """

    number: int  # 1-based
    limit: int
    reasoning: str
    code: str


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """The root LM has written code and the kernel has run it."""

    number: int  # 1-based
    limit: int
    reasoning: str
    code: str
    output: str  # what the agent sees of it, before it is cut for the root LM
    left: int
    seconds: float  # of the whole turn, the root LM's thinking included
    submitted: bool = False  # its code submitted prompts, and they were taken


@dataclass(frozen=True, slots=True)
class AgentSubmitted:
    prompts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SubmissionRefused:
    reason: str


@dataclass(frozen=True, slots=True)
class FellBack:
    """The agent's submission is not given back, or there is no valid one; the prompts of `run_id` are."""

    reason: str
    run_id: str


@dataclass(frozen=True, slots=True)
class NoteGiven:
    """A person's words, which the root LM reads from this turn on."""

    before_turn: int  # 1-based; its request is the first that has the note
    text: str


@dataclass(frozen=True, slots=True)
class WorkPaused:
    """A person has asked for a pause, and the agent waits; evaluations under way come to their end."""

    before_turn: int


@dataclass(frozen=True, slots=True)
class WorkUnpaused:
    before_turn: int
    seconds: float  # of the pause, in this process


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A person has asked to stop and to take the best."""

    turn: int  # that was under way, or ended last


@dataclass(frozen=True, slots=True)
class Branched:
    """The optimization in this store was begun as a branch: its first prompts are those of a run of another one."""

    store: str  # the name of the other store's file
    run_id: str


@dataclass(frozen=True, slots=True)
class CompileFinished:
    baseline_score: float | None
    best_score: float | None
    spent: int
    turns: int
    usage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])  # of all LM calls, as in the result
    verdict: str = ""  # whether the result is better, and how sure that is, in words
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])  # as `SplitResult.to_dict` has them
    prompts_changed: tuple[str, ...] = ()  # steps whose prompt is another one now
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])  # by phase, as in the result


Event: TypeAlias = (
    CompileStarted
    | CompileResumed
    | PhaseStarted
    | PhaseFinished
    | KernelStarted
    | KernelDied
    | EvaluationStarted
    | ExamplesScored
    | EvaluationFinished
    | StillWaiting
    | PromptUpdated
    | BudgetCharged
    | LMUsageCounted
    | TurnStarted
    | TurnFinished
    | AgentSubmitted
    | SubmissionRefused
    | FellBack
    | NoteGiven
    | WorkPaused
    | WorkUnpaused
    | StopRequested
    | Branched
    | CompileFinished
)
Observer: TypeAlias = Callable[[Event], None]


class Emitter:
    """Hands every event to every observer, one event at a time.

    `emit` may be called from any thread; observers are called in the emitting thread, never two at once, in the order
    they were added. An observer must not wait for another thread that emits. One that raises never stops a compile and
    gets the next event as any other: what it failed of may pass, as a full disk does. The first failure of each kind is
    logged with its traceback; `close` says how many there were.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = list(observers)
        self._failures: Counter[str] = Counter()  # by exception class and observer
        # Re-entrant: an observer may emit.
        self._lock = threading.RLock()

    def add(self, observer: Observer) -> None:
        with self._lock:
            self._observers.append(observer)

    def emit(self, event: Event) -> None:
        with self._lock:
            for observer in tuple(self._observers):
                try:
                    observer(event)
                except Exception as error:  # noqa: BLE001 - an observer is foreign code
                    self._note(observer, event, error)

    def close(self) -> None:
        """Say of how many events observers have missed something, if that was not said of each. Idempotent."""
        with self._lock:
            failures, self._failures = self._failures, Counter()
        if failures.total() > len(failures):
            counts = ", ".join(f"{kind} {count} times" for kind, count in failures.items())
            logger.warning("Observers failed on %d events in all: %s", failures.total(), counts)

    def _note(self, observer: Observer, event: Event, error: Exception) -> None:
        kind = f"{type(error).__name__} of {_name_of(observer)}"
        self._failures[kind] += 1
        if self._failures[kind] == 1:
            what, trace = type(event).__name__, traceback_shown(error)
            logger.warning("An observer failed on %s; this is said once for each kind of failure:\n%s", what, trace)


def _name_of(observer: Observer) -> str:
    return getattr(observer, "__qualname__", None) or type(observer).__qualname__
