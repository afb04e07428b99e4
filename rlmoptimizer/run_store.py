"""The run store: runs, results, charges, prompts, iterations and events in one SQLite file. Knows no DSPy.

Everything written is safe against a kill of the process once the call has returned; all but single results also
against a power cut. Thread-safe.
Values and errors of the validation set are stored here, on the host, and are for the host only.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar, cast

from .budget import Charge
from .candidate import ExampleResult
from .costs import LMCall, Role, RoleUsage
from .errors import InvalidSetup, SelectionError, StoreCorrupt, UnknownRunError
from .run_records import (
    LM_USAGE,
    RESULT_COLUMNS,
    RUNS,
    EventRecord,
    IterationRecord,
    RunRecord,
    as_column,
    event_record,
    example_result,
    from_column,
    result_row,
    run_record,
)
from .stored_json import decode, encode

__all__ = ["EventRecord", "IterationRecord", "RunRecord", "RunStore"]

_T = TypeVar("_T")

_APPLICATION_ID: Final = 0x524C4D4F  # "RLMO", so that `file` and we know a store when we see one
_VERSION: Final = 1
_FILE: Final = "runs-{:04d}.sqlite"


class RunStore:
    """One store, open. Use as a context manager or call `close()`.

    It is a `budget.Journal`: `Ledger(limit, journal=store)`. Any method raises `StoreCorrupt` when the file cannot be
    read or written. And it is a `costs.CostJournal`.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the store in `path`, a file that exists; an empty one becomes a new store."""
        self.path = path
        self._clock = clock
        self._lock = threading.RLock()
        self._running: dict[str, tuple[int, dict[str, int]]] = {}  # run id -> its number, and example id -> place
        self._connection: sqlite3.Connection | None = None
        with self._translated():
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30.0)
            try:
                self._prepare(self._connection)
            except BaseException:
                self.close()
                raise

    @classmethod
    def create(cls, path: str | Path) -> RunStore:
        """Make a new store in the file `path` (its directory is made). Raises `InvalidSetup` when the file exists."""
        path = Path(path)
        if path.exists():
            raise InvalidSetup(f"{path} exists already; pass another place for the run store")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("xb").close()  # fails when another process was faster
        except OSError as error:
            raise InvalidSetup(f"no run store can be made at {path}: {error}") from error
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunStore:
        """Open an existing store. Raises `InvalidSetup` when there is none, `StoreCorrupt` when it cannot be read."""
        path = Path(path)
        if not path.is_file() or path.stat().st_size == 0:
            raise InvalidSetup(f"there is no run store at {path}")
        return cls(path)

    @classmethod
    def create_in(cls, directory: str | Path) -> RunStore:
        """Make the next store of a directory: `runs-0001.sqlite`, then `runs-0002.sqlite`, ..."""
        directory = Path(directory)
        for number in itertools.count(max(_numbers(directory), default=0) + 1):
            path = directory / _FILE.format(number)
            try:
                return cls.create(path)
            except InvalidSetup:
                if not path.exists():  # no other process was faster
                    raise
        raise AssertionError("itertools.count() ended")

    @classmethod
    def open_in(cls, directory: str | Path) -> RunStore:
        """Open the newest store of a directory. Raises `InvalidSetup` when it has none."""
        directory = Path(directory)
        numbers = _numbers(directory)
        if not numbers:
            raise InvalidSetup(f"there is no run store in {directory}")
        return cls.open(directory / _FILE.format(max(numbers)))

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Runs.

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
        with self._transaction() as database:
            (number,) = database.execute("SELECT COALESCE(MAX(number), 0) + 1 FROM runs").fetchone()
            run_id = f"r{number}"
            database.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, 'running', NULL, ?, NULL)",
                (
                    number,
                    run_id,
                    split,
                    int(baseline),
                    as_column(encode(dict(config))),
                    as_column(encode(dict(prompts))),
                    encode(list(planned_ids)),
                    self._clock(),
                ),
            )
            self._running[run_id] = number, _places(planned_ids)
        return run_id

    def append(self, run_id: str, *results: ExampleResult) -> None:
        """Add results to a run; all of them or none. A result for an example that has one replaces it."""
        with self._lock:
            number, places = self._running_run(run_id)
            rows = [
                result_row(number, places.setdefault(result.example_id, len(places)), result) for result in results
            ]
            marks = ", ".join("?" * 14)
            with self._transaction(survives_power_cut=False) as database:
                database.executemany(f"INSERT OR REPLACE INTO results ({RESULT_COLUMNS}) VALUES ({marks})", rows)

    def finish_run(self, run_id: str, *, budget_left: int | None = None, cancelled: bool = False) -> RunRecord:
        """Close a run and give its final record."""
        number = self._number(run_id)
        with self._transaction() as database:
            database.execute(
                "UPDATE runs SET state = ?, budget_left = ?, finished_at = ? WHERE number = ?",
                ("cancelled" if cancelled else "finished", budget_left, self._clock(), number),
            )
        self._running.pop(run_id, None)
        return self.run(run_id)

    def run(self, run_id: str) -> RunRecord:
        """One run. Raises `UnknownRunError`."""
        number = self._number(run_id)
        return self._read(run_record, self._query(f"{RUNS} WHERE number = ? GROUP BY number", number))[0]

    def runs(self) -> list[RunRecord]:
        """All runs, oldest first."""
        return self._read(run_record, self._query(f"{RUNS} GROUP BY number ORDER BY number"))

    def run_count(self) -> int:
        """Runs that have begun."""
        return self._query("SELECT COUNT(*) FROM runs")[0][0]

    def examples(
        self, run_id: str, ids: Collection[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[ExampleResult]:
        """The results of a run in planned order; `ids` filters (None: all), then `offset` and `limit` cut.

        Raises `UnknownRunError`.
        """
        number = self._number(run_id)
        rows = self._query(f"SELECT {RESULT_COLUMNS} FROM results WHERE run = ? ORDER BY position", number)
        wanted = rows if ids is None else [row for row in rows if row[2] in ids]
        return self._read(example_result, wanted[offset : None if limit is None else offset + limit])

    def failed_ids(self, run_id: str) -> tuple[str, ...]:
        """The example ids that did not pass in a run on train, in planned order.

        Raises `UnknownRunError`, and `SelectionError` for a run on val.
        """
        if self.run(run_id).split != "train":
            raise SelectionError(f"run {run_id} is on val, whose examples are not shown; name a run on train")
        number = self._number(run_id)
        return tuple(
            row[0]
            for row in self._query(
                "SELECT example_id FROM results WHERE run = ? AND NOT passed ORDER BY position", number
            )
        )

    # Charges.

    def charge(self, amount: int, purpose: str) -> None:
        """Record one charge."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO charges (amount, purpose, at) VALUES (?, ?, ?)",
                (amount, as_column(purpose), self._clock()),
            )

    def charges(self) -> list[Charge]:
        """All charges, oldest first."""
        rows = self._query("SELECT amount, purpose FROM charges ORDER BY number")
        return [Charge(amount, from_column(purpose)) for amount, purpose in rows]

    # LM calls.

    def record_lm_calls(self, *calls: LMCall) -> None:
        """Record LM calls that were answered."""
        now = self._clock()
        rows = [
            (made.role, as_column(made.model), made.outcome, made.prompt_tokens, made.completion_tokens, made.cost, now)
            for made in calls
        ]
        # Many a second, and lost is only what a power cut takes with it.
        with self._transaction(survives_power_cut=False) as database:
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
        """Examples that have a result, in all runs together."""
        return self._query("SELECT COUNT(*) FROM results")[0][0]

    # Prompts.

    def set_prompts(self, prompts: Mapping[str, str]) -> None:
        """Record the whole prompt map that is now set."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO prompts (prompts, at) VALUES (?, ?)", (as_column(encode(dict(prompts))), self._clock())
            )

    def prompts(self) -> dict[str, str] | None:
        """The prompt map set last; None: none was ever set."""
        rows = self._query("SELECT prompts FROM prompts ORDER BY number DESC LIMIT 1")
        maps: list[dict[str, str]] = self._read(lambda row: decode(from_column(row[0])), rows)
        return maps[0] if maps else None

    # The agent.

    def record_iteration(self, reasoning: str, code: str, output: str) -> int:
        """Record one turn of the agent and give its number."""
        with self._transaction() as database:
            cursor = database.execute(
                "INSERT INTO iterations (reasoning, code, output, at) VALUES (?, ?, ?, ?)",
                (as_column(reasoning), as_column(code), as_column(output), self._clock()),
            )
            return cast("int", cursor.lastrowid)

    def iterations(self) -> list[IterationRecord]:
        """All turns, oldest first."""
        rows = self._query("SELECT number, reasoning, code, output, at FROM iterations ORDER BY number")
        return [IterationRecord(number, *map(from_column, texts), at=at) for number, *texts, at in rows]

    def record_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Record one event; `data` are plain values."""
        with self._transaction() as database:
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

    def _prepare(self, database: sqlite3.Connection) -> None:
        (tables,) = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if not tables:
            schema = (resources.files(__package__ or "rlmoptimizer") / "schema.sql").read_text("utf-8")
            marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION};"
            database.executescript(f"BEGIN; {schema} {marks} COMMIT;")
            return
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION_ID:
            raise StoreCorrupt(str(self.path), "it is a database of another program")
        if version != _VERSION:
            raise StoreCorrupt(str(self.path), f"its format has version {version}, this is version {_VERSION}")

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreCorrupt(str(self.path), str(error)) from error

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError(f"the run store {self.path} is closed")
        return self._connection

    @contextmanager
    def _transaction(self, *, survives_power_cut: bool = True) -> Generator[sqlite3.Connection]:
        with self._lock, self._translated():
            database = self._open_connection()
            if not survives_power_cut:
                # What is in the write-ahead log outlives this process, and the next transaction syncs the log.
                database.execute("PRAGMA synchronous = NORMAL")
            try:
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                    database.execute("COMMIT")
                except BaseException:
                    if database.in_transaction:
                        database.execute("ROLLBACK")
                    raise
            finally:
                if not survives_power_cut:
                    database.execute("PRAGMA synchronous = FULL")

    def _query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._translated():
            return self._open_connection().execute(sql, values).fetchall()

    def _number(self, run_id: str) -> int:
        rows = self._query("SELECT number FROM runs WHERE run_id = ?", as_column(str(run_id)))
        if not rows:
            known = self._query("SELECT run_id FROM runs ORDER BY number")
            raise UnknownRunError(str(run_id), (row[0] for row in known))
        return rows[0][0]

    def _running_run(self, run_id: str) -> tuple[int, dict[str, int]]:
        if run_id not in self._running:  # begun by an earlier process
            number = self._number(run_id)
            places = _places(self.run(run_id).planned_ids)
            rows = self._query("SELECT example_id FROM results WHERE run = ? ORDER BY position", number)
            for (example_id,) in rows:
                places.setdefault(example_id, len(places))
            self._running[run_id] = number, places
        return self._running[run_id]

    def _read(self, make: Callable[[tuple[Any, ...]], _T], rows: Iterable[tuple[Any, ...]]) -> list[_T]:
        try:
            return [make(row) for row in rows]
        except (ValueError, TypeError) as error:
            raise StoreCorrupt(str(self.path), f"a row does not hold what it should: {error}") from error


def _places(planned_ids: Iterable[str]) -> dict[str, int]:
    return {example_id: place for place, example_id in enumerate(planned_ids)}


def _numbers(directory: Path) -> list[int]:
    names = (re.fullmatch(r"runs-(\d{4,9})\.sqlite", path.name) for path in _entries(directory))
    return [int(match[1]) for match in names if match]


def _entries(directory: Path) -> Iterator[Path]:
    return directory.iterdir() if directory.is_dir() else iter(())
