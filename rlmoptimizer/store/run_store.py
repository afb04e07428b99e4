"""The run store: what one optimization does, written to one SQLite file while it happens, and read again to go on.

Everything written is safe against a kill of the process and against a power cut once the call has returned; LM calls,
single events and the beginning of a turn only against the kill, and against a power cut with whatever is written after
them. Imports no DSPy.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rlmoptimizer.errors import InvalidSetup, StoreInUse
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import Charge, ExampleResult, LMCall, Rollout, RunRecord, rollouts_of
from rlmoptimizer.store.calls import ToolCall, ToolReply, reply_columns
from rlmoptimizer.store.directory import store_path, stores_in
from rlmoptimizer.store.file import StoreFile
from rlmoptimizer.store.json_text import encode
from rlmoptimizer.store.results import JUDGED
from rlmoptimizer.store.rows import as_column
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.store.takeover_reader import Spare

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RunStore"]

_ENDED: Final = (
    "finished_at = ?, budget_left = ?, evaluated = ?, passed = ?, errors = ?, truncated = ?, judged = ?, "
    "unanswered = ?, reused = ?, score = ?, standard_error = ?, objectives = ?"
)


class RunStore(StoreReader):
    """One store, open to be written by this process alone; the journal of both ledgers, of units and of costs.

    Any method raises `StoreCorrupt` when the file cannot be read or written.
    """

    def __init__(self, file: StoreFile, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(file)
        self._clock = clock
        self._running: dict[str, tuple[int, dict[str, int]]] = {}  # run id -> its number, and example id -> place

    @classmethod
    def create(cls, path: str | Path, *, clock: Callable[[], float] = time.time) -> RunStore:
        """Make a new store in the file `path` (its directory is made). Raises `InvalidSetup` when the file exists."""
        return cls(StoreFile.create(Path(path)), clock=clock)

    @classmethod
    def open(cls, path: str | Path, *, clock: Callable[[], float] = time.time) -> Self:
        """Open an existing store to go on with it.

        Raises `InvalidSetup` when there is none, `StoreInUse` when another process writes to it, and `StoreCorrupt`
        for a file that is torn, foreign or of another version, which is left byte for byte as it was.
        """
        return cls(StoreFile.write(Path(path)), clock=clock)

    @classmethod
    def create_in(cls, directory: str | Path, fill: Callable[[sqlite3.Connection], None] | None = None) -> RunStore:
        """Make the next store of a directory: `runs-0001.sqlite`, then `runs-0002.sqlite`, ...

        With what `fill` puts into it before anybody sees it.
        """
        directory = Path(directory)
        for number in itertools.count(max(stores_in(directory), default=0) + 1):
            path = store_path(directory, number)
            try:
                return cls(StoreFile.create(path, fill))
            except StoreInUse:
                continue
            except InvalidSetup:
                if not path.exists():  # no other process was faster
                    raise
        raise AssertionError("itertools.count() ended")

    def record_setup(self, setup: Mapping[str, Any]) -> None:
        """Record what this store is about; once."""
        with self._file.transaction() as database:
            database.execute(
                "INSERT INTO compile (number, setup, started_at) VALUES (1, ?, ?)",
                (as_column(encode(dict(setup))), self._clock()),
            )

    def replace_setup(self, setup: Mapping[str, Any]) -> None:
        """Record what this store is about anew: that of a branch is known in full only when it begins."""
        with self._file.transaction() as database:
            database.execute("UPDATE compile SET setup = ?", (as_column(encode(dict(setup))),))

    def record_agent_end(self, agent_end: Mapping[str, Any]) -> None:
        """Record how the agent's work ended."""
        with self._file.transaction() as database:
            database.execute("UPDATE compile SET agent_end = ?", (as_column(encode(dict(agent_end))),))

    def record_choice(self, choice: Mapping[str, Any]) -> None:
        """Record which prompts are given back."""
        with self._file.transaction() as database:
            database.execute("UPDATE compile SET choice = ?", (as_column(encode(dict(choice))),))

    def record_outcome(self, outcome: Mapping[str, Any]) -> None:
        """Record how it all ended."""
        with self._file.transaction() as database:
            database.execute(
                "UPDATE compile SET outcome = ?, finished_at = ?", (as_column(encode(dict(outcome))), self._clock())
            )

    # Runs.

    def begin_run(
        self,
        split: str,
        config: Mapping[str, Any],
        prompts: Mapping[str, str],
        *,
        baseline: bool = False,
        planned_ids: Sequence[str] = (),
        repeats: int = 1,
        request: Mapping[str, Any] | None = None,
        turn: int = 0,
        spare: Spare | None = None,
    ) -> str:
        """Record the beginning of a run and give its id.

        `request` is what was asked for; `find_runs` finds the run by it. Each planned example is evaluated `repeats`
        times. Results in `spare` become results of this run.
        """
        with self._file.transaction() as database:
            candidate = self._candidate(database, Prompts.of(prompts))
            (number,) = database.execute("SELECT COALESCE(MAX(number), 0) + 1 FROM runs").fetchone()
            run_id = f"r{number}"
            database.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, 'running', "
                "NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, ?, NULL)",
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
                    repeats,
                    self._clock(),
                ),
            )
            database.execute("INSERT INTO plans VALUES (?, ?)", (number, encode(list(planned_ids))))
            places = _places(planned_ids)
            for (example_id, _), source in (spare or {}).items():
                self._results.take_over(database, number, places[example_id], source)
            self._running[run_id] = number, places
        self._numbers[run_id] = number
        return run_id

    def append(self, run_id: str, *results: ExampleResult, charge: Charge | None = None) -> None:
        """Add results to a run together with what they cost; all of it or nothing.

        A result for a rollout that has one replaces it. Raises ValueError for a run that has ended.
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

    def reopen_run(self, run_id: str) -> tuple[Rollout, ...]:
        """Go on with a run that was cut. Gives the rollouts that have no verdict yet: by rollout, then as planned."""
        number = self._number(run_id)
        with self._file.transaction() as database:
            database.execute(
                f"UPDATE runs SET state = 'running', {_ENDED} WHERE number = ?", (*[None] * 12, number)
            )
        done = set(self._results.rollouts(number, JUDGED))
        planned = rollouts_of(self.planned_ids(run_id), self.run(run_id).repeats)
        return tuple(rollout for rollout in planned if rollout not in done)

    def cut_runs(self) -> list[RunRecord]:
        """Close the runs that a process left open when it ended, as cancelled, and give them."""
        open_runs = self._query("SELECT number, run_id FROM runs WHERE state = 'running' ORDER BY number")
        with self._file.transaction() as database:
            for number, _ in open_runs:
                self._end(database, number, "cancelled", None)
        return [self.run(run_id) for _, run_id in open_runs]

    # Spending.

    def charge(self, amount: int, purpose: str) -> None:
        """Record one charge."""
        with self._file.transaction() as database:
            self._charge(database, Charge(amount, purpose), None)

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

    # Prompts, turns and events.

    def set_prompts(self, prompts: Mapping[str, str]) -> int:
        """Record the whole prompt map that is now set. Gives its bytes, or 0 when it was there before."""
        with self._file.transaction() as database:
            before = database.total_changes
            candidate = self._candidate(database, Prompts.of(prompts))
            size = len(encode(dict(prompts)).encode("utf-8", "surrogatepass")) if database.total_changes > before else 0
            database.execute("INSERT INTO prompts (candidate, at) VALUES (?, ?)", (candidate, self._clock()))
        return size

    def begin_iteration(self, code: str) -> None:
        """Record that a turn of the agent runs this code; it replaces one that was begun and never ended."""
        # All that the turn spends is synced after it, and so is this then.
        with self._file.transaction(survives_power_cut=False) as database:
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

    def record_event(self, kind: str, data: Mapping[str, Any], *, charge: Charge | None = None) -> None:
        """Record one event; `data` are plain values. With a `charge`, both or neither, safe against a power cut too."""
        with self._file.transaction(survives_power_cut=charge is not None) as database:
            database.execute(
                "INSERT INTO events (kind, data, at) VALUES (?, ?, ?)",
                (as_column(kind), as_column(encode(dict(data))), self._clock()),
            )
            if charge is not None:
                self._charge(database, charge, None)

    def record_call(self, call: ToolCall, reply: ToolReply) -> int:
        """Record a call of a tool and what it got; gives its bytes. What such a call spent is safe already."""
        columns = reply_columns(reply)
        texts = (as_column(text) for text in (call.tool, call.shown, call.request))
        with self._file.transaction(survives_power_cut=False) as database:
            database.execute(
                "INSERT INTO calls (turn, tool, shown, request, stray, answer, examples, error, left_out, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (call.turn, *texts, int(call.stray), *columns, self._clock()),
            )
        texts_kept = (text.encode() if isinstance(text, str) else text for text in columns[:3] if text is not None)
        return sum(map(len, texts_kept))

    # SQLite.

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
        database.execute(
            f"UPDATE runs SET state = ?, {_ENDED} WHERE number = ?",
            (state, self._clock(), budget_left, *self._results.totals(number), number),
        )

    def _running_run(self, run_id: str) -> tuple[int, dict[str, int]]:
        if run_id not in self._running:  # begun by an earlier process
            number = self._number(run_id)
            if self.run(run_id).state != "running":
                raise ValueError(f"run {run_id} has ended")
            places = _places(self.planned_ids(run_id))
            for example_id, _ in self._results.rollouts(number):
                places.setdefault(example_id, len(places))
            self._running[run_id] = number, places
        return self._running[run_id]


def _next_turn(database: sqlite3.Connection) -> int:
    return database.execute("SELECT COUNT(*) + 1 FROM iterations WHERE output IS NOT NULL").fetchone()[0]


def _places(planned_ids: Iterable[str]) -> dict[str, int]:
    return {example_id: place for place, example_id in enumerate(planned_ids)}
