"""What a worker process does and keeps: the evaluations that it was sent, by their digests, and its cache of DSPy's.

Its functions answer with bytes and never raise.
"""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextvars
import os
import pickle
import platform
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Generic, TypeVar

import dspy

from kernel_bridge.threads.loop_thread import LoopThread
from rlmoptimizer.evaluation.metric import Scorer, bind_metric
from rlmoptimizer.evaluation.row_runner import RowRunner
from rlmoptimizer.evaluation.step_recorder import describe_error
from rlmoptimizer.evaluation.time_limit import TimeLimit
from rlmoptimizer.evaluation.workers.pickled_evaluation import Base, RunOptions
from rlmoptimizer.evaluation.workers.portable_errors import portable
from rlmoptimizer.evaluation.workers.replies import Loaded, Missing, NotRun, Reply, RowRaised, RowRun, packed
from rlmoptimizer.evaluation.workers.tasks import PROCESS, Part
from rlmoptimizer.lms.cache_space import cache_space
from rlmoptimizer.lms.preflight import why_keyless
from rlmoptimizer.spending.call_meter import HeardCall, KeptCalls
from rlmoptimizer.task.program import all_modules, separate_stages, write_prompts

__all__ = ["UNSCORED", "load", "run_row", "versions"]

_MOST_BASES: Final = 4  # that a worker keeps; several compiles may share a cluster
_MOST_RUNS: Final = 8
_MOST_LATE: Final = 10_000  # LM calls that were answered after their example was given up
_MOST_HISTORY: Final = 100  # entries of an LM's own history, which programs may read and nobody else sees here
_CONNECTION: Final = frozenset({"api_key", "api_base", "base_url", "headers", "extra_headers"})

_T = TypeVar("_T")


def _no_metric(example: Any, prediction: Any) -> float:
    return 0.0


UNSCORED: Final = bind_metric(_no_metric)
"""Asks nothing, and its score says nothing."""


def versions() -> dict[str, str]:
    """Of what must be the same in a worker."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("rlmoptimizer", "dspy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from its sources
            found[package] = "not installed"
    return found


def load(base: Part) -> bytes:
    """A `Loaded`, or a `NotRun`."""
    try:
        lms = _WORKER.lms_asked(base)
    except BaseException as error:  # noqa: BLE001 - foreign classes are made; the host raises it
        return packed(NotRun(describe_error(error)))
    keyless = next(((lm.model, why) for lm in lms if (why := why_keyless(lm)) is not None), None)
    return packed(Loaded(versions(), None if keyless is None else "the LM {} cannot be asked: {}".format(*keyless)))


def run_row(base: Part, run: Part, pickled_row: bytes) -> bytes:
    """A `RowRun`, a `RowRaised`, a `Missing`, or a `NotRun`."""
    try:
        missing = _WORKER.keep(base, run)
        if missing:
            return packed(Missing(missing))
        runner = _WORKER.runner(base.digest, run.digest)
        row = pickle.loads(pickled_row)
    except BaseException as error:  # noqa: BLE001 - foreign classes are made; the host says what became of the row
        return packed(NotRun(describe_error(error)))
    return packed(runner.run(row))


class _Newest(Generic[_T]):
    """The values that were used last, by digest; `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[str, _T] = OrderedDict()

    def get(self, digest: str) -> _T | None:
        if digest in self._values:
            self._values.move_to_end(digest)
        return self._values.get(digest)

    def add(self, digest: str, value: _T) -> None:
        self._values[digest] = value
        self._values.move_to_end(digest)
        while len(self._values) > self._most:
            self._values.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _KeptBase:
    pickled: bytes
    late: deque[HeardCall]  # LM calls of examples that were told of without them


class _Worker:
    """One worker process. Thread-safe: a worker of Dask runs several rows at once."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin with nothing: what was kept is of a process that this one was forked from."""
        self._lock = threading.Lock()
        self._bases: _Newest[_KeptBase] = _Newest(_MOST_BASES)
        self._runs: _Newest[bytes] = _Newest(_MOST_RUNS)
        self._runners: _Newest[_Runner] = _Newest(_MOST_RUNS)
        self._loop = LoopThread()

    def keep(self, base: Part, run: Part) -> frozenset[str]:
        """Keep what was sent along; the digests of what is missing."""
        with self._lock:
            if base.pickled is not None:
                self._keep_base(base.digest, base.pickled)
            if run.pickled is not None:
                self._runs.add(run.digest, run.pickled)
            missing = {base.digest: self._bases.get(base.digest), run.digest: self._runs.get(run.digest)}
            return frozenset(digest for digest, found in missing.items() if found is None)

    def _keep_base(self, digest: str, pickled: bytes) -> None:
        if self._bases.get(digest) is None:
            self._bases.add(digest, _KeptBase(pickled, deque(maxlen=_MOST_LATE)))

    def runner(self, base: str, run: str) -> _Runner:
        """What runs rows; each run has a program of its own, as in one process."""
        digest = f"{base} {run}"
        with self._lock:
            runner = self._runners.get(digest)
            if runner is None:
                kept, options = self._bases.get(base), self._runs.get(run)
                if kept is None or options is None:
                    raise LookupError("the worker keeps too few evaluations for those that run at once")
                runner = _Runner(pickle.loads(kept.pickled), pickle.loads(options), kept.late, self._loop)
                self._runners.add(digest, runner)
            return runner

    def lms_asked(self, part: Part) -> list[dspy.BaseLM]:
        """The LMs that the program of a base asks, but for predictors that have a connection of their own."""
        assert part.pickled is not None
        base: Base = pickle.loads(part.pickled)
        with self._lock:
            self._keep_base(part.digest, part.pickled)
        lms: list[Any] = [
            base.lm if getattr(predictor, "lm", None) is None else predictor.lm
            for predictor in base.program.predictors()
            if not _CONNECTION & set(getattr(predictor, "config", None) or ())
        ]
        return [lm for lm in lms if isinstance(lm, dspy.BaseLM)]


class _Runner:
    """Runs rows of one run, and keeps the LM calls of each for the host's meter."""

    def __init__(self, base: Base, options: RunOptions, late: deque[HeardCall], loop: LoopThread) -> None:
        self._lms = tuple(_lms(base))
        self._late = late
        if options.prompts is not None:
            write_prompts(base.program, options.prompts)
        separate_stages(base.program)
        scorer: Scorer = base.scorer if options.scored else UNSCORED
        space = nullcontext() if options.space is None else cache_space(options.space)
        history = min(base.settings.get("max_history_size", _MOST_HISTORY), _MOST_HISTORY)
        with dspy.context(**{**base.settings, "max_history_size": history}), space:
            self._context = contextvars.copy_context()
        self._rows = RowRunner(
            base.program,
            scorer,
            base.lm,
            limit=TimeLimit(options.seconds, loop),
            context=self._context,
            detail=options.detail,
        )

    def run(self, row: Any) -> Reply:
        calls = KeptCalls(self._lms, self._late.append)
        try:
            outcome = self._rows.run(row, self._context.copy().run(_metered, calls))
        except BaseException as error:  # noqa: BLE001 - the host raises it where it belongs
            return RowRaised(portable(error), (*self._taken_late(), *calls.tell()))
        failure = None if outcome.lm_failure is None else portable(outcome.lm_failure)
        heard = (*self._taken_late(), *calls.tell())
        return RowRun(replace(outcome, lm_failure=None), failure, heard)

    def _taken_late(self) -> Iterable[HeardCall]:
        while True:
            try:
                yield self._late.popleft()
            except IndexError:
                return


def _metered(calls: KeptCalls) -> contextvars.Context:
    with calls.role("eval"):
        return contextvars.copy_context()


def _lms(base: Base) -> Iterable[dspy.BaseLM]:
    found = [base.lm, base.settings.get("lm"), *(getattr(module, "lm", None) for module in all_modules(base.program))]
    return {id(lm): lm for lm in found if isinstance(lm, dspy.BaseLM)}.values()


_WORKER: Final = _Worker()


def _begin_anew() -> None:
    PROCESS.renew()
    _WORKER.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
