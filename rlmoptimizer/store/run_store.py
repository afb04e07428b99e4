"""The run store: runs, results, charges, prompts, turns and events in one SQLite file. Knows no DSPy.

Everything written is safe against a kill of the process and against a power cut once the call has returned; single
events only against the kill. Thread-safe.
Values and errors of the validation set are stored here, on the host, and are for the host only.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar, cast

from rlmoptimizer.errors import InvalidSetup, SelectionError, StoreInUse, UnknownRunError
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import (
    CandidateRecord,
    Charge,
    EventRecord,
    ExampleResult,
    IterationRecord,
    LMCall,
    Role,
    RoleUsage,
    RunRecord,
)
from rlmoptimizer.store.file import StoreFile, store_path, stores_in
from rlmoptimizer.store.json_text import decode, encode
from rlmoptimizer.store.results import StoredResults
from rlmoptimizer.store.rows import (
    LM_USAGE,
    RUNS,
    as_column,
    candidate_id,
    decoded,
    event_record,
    from_column,
    iteration_record,
    run_record,
)

__all__ = ["RunStore", "Spare"]

_T = TypeVar("_T")

_ENDED: Final = "finished_at = ?, budget_left = ?, evaluated = ?, passed = ?, errors = ?, unanswered = ?, reused = ?"

Spare = dict[str, tuple[int, int]]  # example id -> the row (number of the run, position) that a new run may take over


class RunStore:
    """One store, open. Use as a context manager or call `close()`.

    It is the journal of both ledgers, of units and of costs. Any method raises `StoreCorrupt` when the file cannot be
    read or written.
    """

    def __init__(self, file: StoreFile, *, clock: Callable[[], float] = time.time) -> None:
        self.path = file.path
        self._file = file
        self._clock = clock
        self._results = StoredResults(file)
        self._numbers: dict[str, int] = {}  # of runs, by their ids
        self._running: dict[str, tuple[int, dict[str, int]]] = {}  # run id -> its number, and example id -> place

    @classmethod
    def create(cls, path: str | Path, *, clock: Callable[[], float] = time.time) -> RunStore:
        """Make a new store in the file `path` (its directory is made). Raises `InvalidSetup` when the file exists."""
        return cls(StoreFile.create(Path(path)), clock=clock)

    @classmethod
    def open(cls, path: str | Path, *, read_only: bool = False, clock: Callable[[], float] = time.time) -> RunStore:
        """Open an existing store, to go on with it, or only to look at it, which goes beside a process that writes.

        Raises `InvalidSetup` when there is none, `StoreInUse` when another process writes to it, and `StoreCorrupt`
        for a file that is torn, foreign or of a later version, which is left byte for byte as it was.
        """
        return cls(StoreFile.read(Path(path)) if read_only else StoreFile.write(Path(path)), clock=clock)

    @classmethod
    def create_in(cls, directory: str | Path) -> RunStore:
        """Make the next store of a directory: `runs-0001.sqlite`, then `runs-0002.sqlite`, ..."""
        directory = Path(directory)
        for number in itertools.count(max(stores_in(directory), default=0) + 1):
            path = store_path(directory, number)
            try:
                return cls.create(path)
            except StoreInUse:
                continue
            except InvalidSetup:
                if not path.exists():  # no other process was faster
                    raise
        raise AssertionError("itertools.count() ended")

    @classmethod
    def open_in(cls, directory: str | Path, *, read_only: bool = False) -> RunStore:
        """Open the newest store of a directory, as `open` does. Raises `InvalidSetup` when it has none."""
        directory = Path(directory)
        numbers = stores_in(directory)
        if not numbers:
            raise InvalidSetup(f"there is no run store in {directory}; name that of a compile that has begun")
        return cls.open(store_path(directory, max(numbers)), read_only=read_only)

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The whole.

    def record_setup(self, setup: Mapping[str, Any]) -> None:
        """Record what this store is about; once."""
        with self._file.transaction() as database:
            database.execute(
                "INSERT INTO compile (number, setup, started_at) VALUES (1, ?, ?)",
                (as_column(encode(dict(setup))), self._clock()),
            )

    def setup(self) -> dict[str, Any] | None:
        """What this store is about; None: nobody said."""
        return self._one_document("setup")

    def record_outcome(self, outcome: Mapping[str, Any]) -> None:
        """Record how it all ended."""
        with self._file.transaction() as database:
            database.execute(
                "UPDATE compile SET outcome = ?, finished_at = ?", (as_column(encode(dict(outcome))), self._clock())
            )

    def outcome(self) -> dict[str, Any] | None:
        """How it all ended; None: it has not."""
        return self._one_document("outcome")

    def submission(self) -> dict[str, Any] | None:
        """What the agent submitted with its last turn; None: it has not."""
        return self._one_document("submission")

    # Runs.

    def begin_run(
        self,
        split: str,
        config: Mapping[str, Any],
        prompts: Mapping[str, str],
        *,
        baseline: bool = False,
        planned_ids: Sequence[str] = (),
        request: Mapping[str, Any] | None = None,
        turn: int = 0,
        spare: Spare | None = None,
    ) -> str:
        """Record the beginning of a run and give its id.

        `request` is what was asked for; `find_runs` finds the run by it. Rows in `spare` become rows of this run.
        """
        with self._file.transaction() as database:
            candidate = self._candidate(database, Prompts.of(prompts))
            (number,) = database.execute("SELECT COALESCE(MAX(number), 0) + 1 FROM runs").fetchone()
            run_id = f"r{number}"
            database.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, 'running', "
                "NULL, NULL, NULL, NULL, NULL, NULL, NULL, ?, NULL)",
                (
                    number,
                    run_id,
                    split,
                    int(baseline),
                    candidate,
                    as_column(encode(dict(config))),
                    None if request is None else as_column(encode(dict(request))),
                    turn,
                    len(planned_ids),
                    self._clock(),
                ),
            )
            database.execute("INSERT INTO plans VALUES (?, ?)", (number, encode(list(planned_ids))))
            places = _places(planned_ids)
            for example_id, source in (spare or {}).items():
                self._results.take_over(database, number, places[example_id], source)
            self._running[run_id] = number, places
        self._numbers[run_id] = number
        return run_id

    def append(self, run_id: str, *results: ExampleResult, charge: Charge | None = None) -> None:
        """Add results to a run together with what they cost; all of it or nothing.

        A result for an example that has one replaces it. Raises ValueError for a run that has ended.
        """
        with self._file.lock:
            number, places = self._running_run(run_id)
            with self._file.transaction() as database:
                for result in results:
                    place = places.setdefault(result.example_id, len(places))
                    self._results.put(database, number, place, result)
                if charge is not None:
                    self._charge(database, charge, number)

    def finish_run(
        self, run_id: str, *, budget_left: int | None = None, cancelled: bool = False, failed: bool = False
    ) -> RunRecord:
        """Close a run and give its final record; a cancelled one can be reopened, a failed one cannot."""
        number = self._number(run_id)
        state = "failed" if failed else "cancelled" if cancelled else "finished"
        with self._file.transaction() as database:
            self._end(database, number, state, budget_left)
        self._running.pop(run_id, None)
        return self.run(run_id)

    def reopen_run(self, run_id: str) -> tuple[str, ...]:
        """Go on with a run that was cut. Gives the planned ids that have no verdict yet, in order."""
        number = self._number(run_id)
        with self._file.transaction() as database:
            database.execute(
                f"UPDATE runs SET state = 'running', score = NULL, {_ENDED} WHERE number = ?", (*[None] * 7, number)
            )
        done = self._results.judged_ids(number)
        return tuple(example_id for example_id in self.planned_ids(run_id) if example_id not in done)

    def cut_runs(self) -> list[RunRecord]:
        """Close the runs that a process left open when it ended, as cancelled, and give them."""
        open_runs = self._query("SELECT number, run_id FROM runs WHERE state = 'running' ORDER BY number")
        with self._file.transaction() as database:
            for number, _ in open_runs:
                self._end(database, number, "cancelled", None)
        return [self.run(run_id) for _, run_id in open_runs]

    def find_runs(
        self, split: str, prompts: Mapping[str, str], request: Mapping[str, Any], *, baseline: bool = False
    ) -> list[RunRecord]:
        """The runs that a request goes on with instead of beginning one, oldest first.

        Those that were cut, those on train with examples that have no verdict, and finished ones whose answer nobody
        has.
        """
        return self._runs(
            "WHERE split = ? AND candidate = ? AND request = ? AND baseline = ? "
            "AND (NOT answered OR (unanswered > 0 AND (split = 'train' OR baseline))) "
            "AND state IN ('cancelled', 'finished') ORDER BY number",
            split,
            Prompts.of(prompts).digest,
            as_column(encode(dict(request))),
            int(baseline),
        )

    def count_runs(self, split: str, prompts: Mapping[str, str], request: Mapping[str, Any]) -> int:
        """How many runs were ever begun for a request."""
        return self._query(
            "SELECT COUNT(*) FROM runs WHERE split = ? AND candidate = ? AND request = ?",
            split,
            Prompts.of(prompts).digest,
            as_column(encode(dict(request))),
        )[0][0]

    def free_runs(self) -> tuple[int, int]:
        """How many runs that are no baseline were begun and have cost nothing, and the bytes of what they were asked.

        Without those that are under way, and those that have all of their verdicts from others.
        """
        free = (
            "SELECT COUNT(*), COALESCE(SUM(LENGTH(CAST(config AS BLOB))), 0) FROM runs WHERE NOT baseline "
            "AND state != 'running' AND evaluated = 0 AND number NOT IN (SELECT run FROM charges WHERE run IS NOT NULL)"
        )
        return cast("tuple[int, int]", self._query(free)[0])

    def spare_rows(self, split: str, prompts: Mapping[str, str], *, but: Collection[str] = ()) -> tuple[Spare, Spare]:
        """Rows of these prompts in runs whose answers nobody has, and which no run has taken over yet.

        First those with a verdict, then those that show what was answered before their LM failed. Runs named in `but`
        and baselines are left out.
        """
        rows = self._query(
            "SELECT counted, run_id, example_id, number, position FROM runs JOIN results ON run = number "
            "WHERE split = ? AND candidate = ? AND NOT baseline AND NOT answered "
            "AND state IN ('cancelled', 'finished') AND counted IN (1, 2) AND NOT taken ORDER BY number DESC",
            split,
            Prompts.of(prompts).digest,
        )
        spare: dict[int, Spare] = {1: {}, 2: {}}
        for counted, run_id, example_id, number, place in rows:
            if run_id not in but:
                spare[counted][example_id] = number, place
        return spare[1], spare[2]

    def run(self, run_id: str) -> RunRecord:
        """One run. Raises `UnknownRunError`."""
        return self._runs("WHERE number = ?", self._number(run_id))[0]

    def runs(self) -> list[RunRecord]:
        """All runs, oldest first."""
        return self._runs("ORDER BY number")

    def planned_ids(self, run_id: str) -> tuple[str, ...]:
        """The ids of the examples that were chosen, in order. Raises `UnknownRunError`."""
        rows = self._query("SELECT example_ids FROM plans WHERE run = ?", self._number(run_id))
        return self._read(lambda row: tuple(cast("list[str]", decode(row[0]))), rows)[0]

    def run_count(self) -> int:
        """Runs that have begun."""
        return self._query("SELECT COUNT(*) FROM runs")[0][0]

    def examples(
        self, run_id: str, ids: Collection[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[ExampleResult]:
        """The results of a run in planned order; `ids` filters (None: all), then `offset` and `limit` cut.

        Reads no other rows than those it gives. Raises `UnknownRunError`.
        """
        return self._results.examples(self._number(run_id), ids, offset, limit)

    def failed_ids(self, run_id: str) -> tuple[str, ...]:
        """The example ids that did not pass in a run on train, in planned order.

        Raises `UnknownRunError`, and `SelectionError` for a run on val.
        """
        if self.run(run_id).split != "train":
            raise SelectionError(f"run {run_id} is on val, whose examples are not shown; name a run on train")
        return self._results.failed_ids(self._number(run_id))

    def shown_ids(self, run_id: str) -> frozenset[str]:
        """The ids of those examples that have no verdict, but show what was answered before their LM failed.

        Those that another run has taken over are left out. Raises `UnknownRunError`.
        """
        return frozenset(self._results.shown_ids(self._number(run_id)))

    def error_kinds(self, run_id: str) -> dict[str, int]:
        """How many examples of a run have an error of each kind. Raises `UnknownRunError`."""
        return self._results.error_kinds(self._number(run_id))

    def metric_works(self) -> bool:
        """Whether the metric has ever judged an example without raising."""
        return self._results.metric_works()

    # Charges.

    def charge(self, amount: int, purpose: str) -> None:
        """Record one charge."""
        with self._file.transaction() as database:
            self._charge(database, Charge(amount, purpose), None)

    def charges(self) -> list[Charge]:
        """All charges, oldest first."""
        rows = self._query("SELECT amount, purpose FROM charges ORDER BY number")
        return self._read(lambda row: Charge(row[0], from_column(row[1])), rows)

    def spent(self, purpose: str | None = None) -> int:
        """Units charged, for one purpose or for all."""
        every = "SELECT COALESCE(SUM(amount), 0) FROM charges"
        rows = self._query(every) if purpose is None else self._query(f"{every} WHERE purpose = ?", as_column(purpose))
        return rows[0][0]

    # LM calls.

    def record_lm_calls(self, *calls: LMCall) -> None:
        """Record LM calls that were answered."""
        now = self._clock()
        rows = [
            (made.role, as_column(made.model), made.outcome, made.prompt_tokens, made.completion_tokens, made.cost, now)
            for made in calls
        ]
        # Many a second, and lost is only what a power cut takes with it.
        with self._file.transaction(survives_power_cut=False) as database:
            database.executemany(
                "INSERT INTO lm_calls (role, model, outcome, prompt_tokens, completion_tokens, cost, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def lm_usage(self) -> dict[Role, RoleUsage]:
        """What all LM calls so far amount to, by role."""
        rows = self._query(LM_USAGE)
        return dict(self._read(lambda row: (row[0], RoleUsage(*row[1:])), rows))

    def evaluated_examples(self) -> int:
        """Examples that were run, in all runs together."""
        return self._results.evaluated()

    # Prompts.

    def set_prompts(self, prompts: Mapping[str, str]) -> int:
        """Record the whole prompt map that is now set. Gives its bytes, or 0 when it was there before."""
        with self._file.transaction() as database:
            before = database.total_changes
            candidate = self._candidate(database, Prompts.of(prompts))
            size = len(encode(dict(prompts)).encode("utf-8", "surrogatepass")) if database.total_changes > before else 0
            database.execute("INSERT INTO prompts (candidate, at) VALUES (?, ?)", (candidate, self._clock()))
        return size

    def prompts_set(self) -> tuple[int, int]:
        """How often prompts were set, and how many bytes all the different maps of them have."""
        sizes = "SELECT LENGTH(CAST(prompts AS BLOB)) FROM candidates WHERE id IN (SELECT candidate FROM prompts)"
        (count,) = self._query("SELECT COUNT(*) FROM prompts")[0]
        return count, sum(row[0] for row in self._query(sizes))

    def prompts(self) -> dict[str, str] | None:
        """The prompt map set last; None: none was ever set."""
        every = "SELECT candidates.prompts FROM prompts JOIN candidates ON id = candidate"
        last = f"{every} ORDER BY prompts.number DESC LIMIT 1"
        maps: list[dict[str, str]] = self._read(lambda row: decode(from_column(row[0])), self._query(last))
        return maps[0] if maps else None

    def candidates(self) -> list[CandidateRecord]:
        """Every prompt map that was evaluated or set, once, oldest first."""

        def record(row: tuple[Any, ...]) -> CandidateRecord:
            return CandidateRecord(row[0], row[1], decode(from_column(row[2])), row[3])

        return self._read(record, self._query("SELECT id, parent, prompts, at FROM candidates ORDER BY rowid"))

    # The agent.

    def begin_iteration(self, code: str) -> None:
        """Record that a turn of the agent runs this code; it replaces one that was begun and never ended."""
        with self._file.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO iterations VALUES (?, '', ?, NULL, NULL, ?)",
                (_next_turn(database), as_column(code), self._clock()),
            )

    def record_iteration(
        self,
        reasoning: str,
        code: str,
        output: str,
        *,
        seconds: float | None = None,
        answered: bool = True,
        val_given: Collection[str] = (),
        submission: Mapping[str, Any] | None = None,
    ) -> int:
        """Record one turn of the agent, now that it has ended, and give its number.

        `answered`: the agent has the results of all runs on train that have finished, and of those on val that are
        named in `val_given`. `submission`: what it submitted.
        """
        with self._file.transaction() as database:
            number = _next_turn(database)
            texts = (as_column(text) for text in (reasoning, code, output))
            database.execute(
                "INSERT OR REPLACE INTO iterations VALUES (?, ?, ?, ?, ?, ?)", (number, *texts, seconds, self._clock())
            )
            if answered:
                told = "UPDATE runs SET answered = 1 WHERE state = 'finished' AND NOT baseline AND"
                database.execute(f"{told} split = 'train'")
                database.executemany(f"{told} split = 'val' AND run_id = ?", [(run_id,) for run_id in val_given])
            if submission is not None:
                database.execute("UPDATE compile SET submission = ?", (as_column(encode(dict(submission))),))
            return number

    def iterations(self) -> list[IterationRecord]:
        """All turns that have ended, oldest first."""
        return self._iterations("WHERE output IS NOT NULL ORDER BY number")

    def unfinished_iteration(self) -> IterationRecord | None:
        """The turn that was begun and has not ended, if there is one."""
        found = self._iterations("WHERE output IS NULL")
        return found[0] if found else None

    def record_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Record one event; `data` are plain values."""
        with self._file.transaction(survives_power_cut=False) as database:
            database.execute(
                "INSERT INTO events (kind, data, at) VALUES (?, ?, ?)",
                (as_column(kind), as_column(encode(dict(data))), self._clock()),
            )

    def events(self, kind: str | None = None) -> list[EventRecord]:
        """All events, or those of one kind, oldest first."""
        rows = self._query("SELECT number, kind, data, at FROM events ORDER BY number")
        records = self._read(event_record, rows)
        return [record for record in records if kind is None or record.kind == kind]

    # SQLite.

    def _query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._file.query(sql, *values)

    def _one_document(self, column: str) -> dict[str, Any] | None:
        rows = self._query(f"SELECT {column} FROM compile WHERE {column} IS NOT NULL")
        found: list[dict[str, Any]] = self._read(lambda row: decode(from_column(row[0])), rows)
        return found[0] if found else None

    def _candidate(self, database: sqlite3.Connection, prompts: Prompts) -> str:
        database.execute(
            "INSERT OR IGNORE INTO candidates "
            "VALUES (?, (SELECT candidate FROM prompts ORDER BY number DESC LIMIT 1), ?, ?)",
            (prompts.digest, as_column(encode(dict(prompts))), self._clock()),
        )
        return prompts.digest

    def _charge(self, database: sqlite3.Connection, charge: Charge, run: int | None) -> None:
        database.execute(
            "INSERT INTO charges (amount, purpose, run, at) VALUES (?, ?, ?, ?)",
            (charge.amount, as_column(charge.purpose), run, self._clock()),
        )

    def _end(self, database: sqlite3.Connection, number: int, state: str, budget_left: int | None) -> None:
        *counts, score = self._results.totals(number)
        database.execute(
            f"UPDATE runs SET state = ?, score = ?, {_ENDED} WHERE number = ?",
            (state, score, self._clock(), budget_left, *counts, number),
        )

    def _runs(self, clause: str, *values: Any) -> list[RunRecord]:
        with self._file.lock:
            rows = self._query(f"{RUNS} {clause}", *values)
            filled = [
                (*row[:11], *self._results.totals(row[0]), *row[17:]) if row[10] == "running" else row for row in rows
            ]
        return self._read(run_record, filled)

    def _iterations(self, clause: str) -> list[IterationRecord]:
        rows = self._query(f"SELECT number, reasoning, code, output, seconds, at FROM iterations {clause}")
        return self._read(iteration_record, rows)

    def _number(self, run_id: str) -> int:
        if run_id in self._numbers:
            return self._numbers[run_id]
        rows = self._query("SELECT number FROM runs WHERE run_id = ?", as_column(str(run_id)))
        if not rows:
            known = self._query("SELECT run_id FROM runs ORDER BY number")
            raise UnknownRunError(str(run_id), (row[0] for row in known))
        self._numbers[run_id] = rows[0][0]
        return rows[0][0]

    def _running_run(self, run_id: str) -> tuple[int, dict[str, int]]:
        if run_id not in self._running:  # begun by an earlier process
            number = self._number(run_id)
            if self.run(run_id).state != "running":
                raise ValueError(f"run {run_id} has ended")
            places = _places(self.planned_ids(run_id))
            for example_id in self._results.ids(number):
                places.setdefault(example_id, len(places))
            self._running[run_id] = number, places
        return self._running[run_id]

    def _read(self, make: Callable[[tuple[Any, ...]], _T], rows: Iterable[tuple[Any, ...]]) -> list[_T]:
        return decoded(make, rows, self.path)


def _next_turn(database: sqlite3.Connection) -> int:
    return database.execute("SELECT COUNT(*) + 1 FROM iterations WHERE output IS NOT NULL").fetchone()[0]


def _places(planned_ids: Iterable[str]) -> dict[str, int]:
    return {example_id: place for place, example_id in enumerate(planned_ids)}
