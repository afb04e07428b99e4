"""The run store: runs, results, charges, prompts, iterations and events in one SQLite file. Knows no DSPy.

Everything written is safe against a kill of the process once the call has returned. Thread-safe.
Values and errors of the validation set are stored here, on the host, and are for the host only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .budget import Charge
from .evaluation import ExampleResult

__all__ = ["EventRecord", "IterationRecord", "RunRecord", "RunStore"]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One evaluation."""

    run_id: str  # "r1", "r2", ... in the order of their beginning
    split: str  # "train" or "val"
    baseline: bool
    config: dict[str, Any]  # the selection, as the agent gets it back
    prompts: dict[str, str]  # the prompts that were evaluated
    planned_ids: tuple[str, ...]  # example ids chosen, in order
    state: str  # "running", "finished" or "cancelled"
    score: float | None  # mean over the evaluated examples, 0..1; None: none yet
    evaluated_count: int
    passed_count: int
    error_count: int
    budget_left: int | None  # units left after it; None: not finished, or not told
    started_at: float  # Unix time
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class IterationRecord:
    """One turn of the agent."""

    number: int  # 1-based
    reasoning: str
    code: str
    output: str
    at: float  # Unix time


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Anything else worth keeping."""

    number: int
    kind: str
    data: dict[str, Any]
    at: float  # Unix time


class RunStore:
    """One store, open. Use as a context manager or call `close()`.

    It is a `budget.Journal`: `Ledger(limit, journal=store)`.
    """

    path: Path

    @classmethod
    def create(cls, path: str | Path) -> RunStore:
        """Make a new store in the file `path` (its directory is made). Raises `InvalidSetup` when the file exists."""
        raise NotImplementedError

    @classmethod
    def open(cls, path: str | Path) -> RunStore:
        """Open an existing store. Raises `InvalidSetup` when there is none, `StoreCorrupt` when it cannot be read."""
        raise NotImplementedError

    @classmethod
    def create_in(cls, directory: str | Path) -> RunStore:
        """Make the next store of a directory: `runs-0001.sqlite`, then `runs-0002.sqlite`, ..."""
        raise NotImplementedError

    @classmethod
    def open_in(cls, directory: str | Path) -> RunStore:
        """Open the newest store of a directory."""
        raise NotImplementedError

    def close(self) -> None:
        """Idempotent."""
        raise NotImplementedError

    # runs
    def begin_run(
        self,
        split: str,
        config: Mapping[str, Any],
        prompts: Mapping[str, str],
        *,
        baseline: bool = False,
        planned_ids: Sequence[str] = (),
    ) -> str:
        """Record the beginning of a run and give its id."""
        raise NotImplementedError

    def append(self, run_id: str, *results: ExampleResult) -> None:
        """Add results to a running run; all of them or none. A result for an example that has one replaces it."""
        raise NotImplementedError

    def finish_run(self, run_id: str, *, budget_left: int | None = None, cancelled: bool = False) -> RunRecord:
        """Close a run and give its final record."""
        raise NotImplementedError

    def run(self, run_id: str) -> RunRecord:
        """One run. Raises `UnknownRunError`."""
        raise NotImplementedError

    def runs(self) -> list[RunRecord]:
        """All runs, oldest first."""
        raise NotImplementedError

    def examples(
        self, run_id: str, ids: Collection[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[ExampleResult]:
        """The results of a run in planned order; `ids` filters (None: all), then `offset` and `limit` cut.

        Raises `UnknownRunError`.
        """
        raise NotImplementedError

    def failed_ids(self, run_id: str) -> tuple[str, ...]:
        """The example ids that did not pass in a run on train, in planned order.

        Raises `UnknownRunError`, and `SelectionError` for a run on val.
        """
        raise NotImplementedError

    # charges
    def charge(self, amount: int, purpose: str) -> None:
        """Record one charge."""
        raise NotImplementedError

    def charges(self) -> list[Charge]:
        """All charges, oldest first."""
        raise NotImplementedError

    # prompts
    def set_prompts(self, prompts: Mapping[str, str]) -> None:
        """Record the whole prompt map that is now set."""
        raise NotImplementedError

    def prompts(self) -> dict[str, str] | None:
        """The prompt map set last; None: none was ever set."""
        raise NotImplementedError

    # the agent
    def record_iteration(self, reasoning: str, code: str, output: str) -> int:
        """Record one turn of the agent and give its number."""
        raise NotImplementedError

    def iterations(self) -> list[IterationRecord]:
        """All turns, oldest first."""
        raise NotImplementedError

    def record_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Record one event; `data` are plain values."""
        raise NotImplementedError

    def events(self, kind: str | None = None) -> list[EventRecord]:
        """All events, or those of one kind, oldest first."""
        raise NotImplementedError


def _unused(values: Iterable[Any]) -> None:
    del values
