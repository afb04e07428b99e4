"""Reading a run store: runs, results, charges, prompts, turns and events, as far as they are written. Imports no DSPy.

Reads beside a process that writes, takes no lock that it would wait for, and changes nothing. Values and errors of the
validation set are stored too: they are for the host only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from rlmoptimizer.errors import InvalidSetup, SelectionError, UnknownRunError
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import (
    PASSED_AT,
    CandidateRecord,
    Charge,
    EventRecord,
    ExampleResult,
    IterationRecord,
    Role,
    RoleUsage,
    Rollout,
    RunRecord,
)
from rlmoptimizer.store.calls import MadeCall, ToolReply, made_call, tool_reply
from rlmoptimizer.store.file import StoreFile, store_path, stores_in
from rlmoptimizer.store.json_text import decode, encode
from rlmoptimizer.store.pauses import MARKS, pauses
from rlmoptimizer.store.results import SHOWN, Place, RolloutScore, StoredResults
from rlmoptimizer.store.rows import (
    LM_USAGE,
    RESULT_HEADS,
    RESULTS,
    RESULTS_WITHOUT_STEPS,
    RUNS,
    as_column,
    decoded,
    event_record,
    from_column,
    iteration_record,
    run_record,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Spare", "StoreReader"]

_T = TypeVar("_T")

Spare = dict[Rollout, Place]  # a rollout -> the result that a new run may take over for it

_PAGE: Final = 50  # examples that are read at once

_WRITTEN_AT: Final = (  # where something is written down as it happens: table and column of a time
    ("events", "at"),
    ("runs", "started_at"),
    ("runs", "finished_at"),
    ("charges", "at"),
    ("lm_calls", "at"),
    ("iterations", "at"),
)


class StoreReader:
    """One store, open to be read. Use as a context manager or call `close()`. Thread-safe.

    Any method raises `StoreCorrupt` when the file cannot be read.
    """

    def __init__(self, file: StoreFile) -> None:
        self.path = file.path
        self._file = file
        self._results = StoredResults(file)
        self._numbers: dict[str, int] = {}  # of runs, by their ids

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing store to look at it, also while another process writes to it.

        Raises `InvalidSetup` when there is none, and `StoreCorrupt` for a file that is torn, foreign or of another
        version.
        """
        return cls(StoreFile.read(Path(path)))

    @classmethod
    def open_in(cls, directory: str | Path) -> Self:
        """Open the newest store of a directory, as `open` does. Raises `InvalidSetup` when it has none."""
        numbers = stores_in(Path(directory))
        if not numbers:
            raise InvalidSetup(f"there is no run store in {directory}; name that of a compile that has begun")
        return cls.open(store_path(Path(directory), max(numbers)))

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def snapshot(self) -> AbstractContextManager[None]:
        """All that the block reads is of one moment, whatever another process writes. For a store opened to be read.

        Other threads wait with their reading.
        """
        return self._file.snapshot()

    def began_and_ended(self) -> tuple[float | None, float | None]:
        """When the optimization began and when it ended, Unix time; None: it has not."""
        rows = self._query("SELECT started_at, finished_at FROM compile")
        return rows[0] if rows else (None, None)

    def setup(self) -> dict[str, Any] | None:
        """What this store is about; None: nobody said."""
        return self._one_document("setup")

    def outcome(self) -> dict[str, Any] | None:
        """How it all ended; None: it has not."""
        return self._one_document("outcome")

    def submission(self) -> dict[str, Any] | None:
        """What the agent submitted with its last turn; None: it has not."""
        return self._one_document("submission")

    def agent_end(self) -> dict[str, Any] | None:
        """How the agent's work ended; None: it goes on."""
        return self._one_document("agent_end")

    def choice(self) -> dict[str, Any] | None:
        """Which prompts are given back, and why; None: not decided."""
        return self._one_document("choice")

    # Runs.

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
        self,
        run_id: str,
        ids: Collection[str] | None = None,
        offset: int = 0,
        limit: int | None = None,
        *,
        steps: bool = True,
    ) -> list[ExampleResult]:
        """The results of a run in planned order, those of one example by rollout.

        `ids` filters (None: all), then `offset` and `limit` cut: they count examples. Reads no other rows than those
        it gives; `steps=False` leaves out the steps. Raises `UnknownRunError`.
        """
        columns = RESULTS if steps else RESULTS_WITHOUT_STEPS
        return self._results.examples(self._number(run_id), ids, offset, limit, columns=columns)

    def brief_examples(
        self, run_id: str, ids: Collection[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[ExampleResult]:
        """As `examples`, but without what was expected, predicted and traced: these are empty. Much quicker."""
        return self._results.examples(self._number(run_id), ids, offset, limit, columns=RESULT_HEADS)

    def each_example(self, run_id: str, *, steps: bool = True) -> Iterator[ExampleResult]:
        """The results of a run as `examples` gives them, with few in memory at once; `steps=False` leaves these out.

        Raises `UnknownRunError`.
        """
        for offset in itertools.count(0, _PAGE):
            page = self.examples(run_id, None, offset, _PAGE, steps=steps)
            if not page:
                return
            yield from page

    def failed_ids(self, run_id: str) -> tuple[str, ...]:
        """The ids of the examples that did not pass in a run on train, in planned order.

        Those that have a result, but no verdict or one that is no pass. Raises `UnknownRunError`, and `SelectionError`
        for a run on another split.
        """
        if (split := self.run(run_id).split) != "train":
            raise SelectionError(f"run {run_id} is on {split}, whose examples are not shown; name a run on train")
        return tuple(self._results.failed_ids(self._number(run_id)))

    def shown_rollouts(self, run_id: str) -> frozenset[Rollout]:
        """The rollouts that have no verdict, but show what was answered before their LM failed.

        Those that another run has taken over are left out. Raises `UnknownRunError`.
        """
        return frozenset(self._results.rollouts(self._number(run_id), SHOWN))

    def result_ids(self, run_id: str) -> frozenset[str]:
        """The ids of the examples that have a result, also one without a verdict. Raises `UnknownRunError`."""
        return frozenset(example_id for example_id, _ in self._results.rollouts(self._number(run_id)))

    def scores(self, run_id: str) -> dict[str, list[float]]:
        """The scores of each example that has a verdict, in planned order, those of one example by rollout.

        Also those that were taken over from other runs. Raises `UnknownRunError`.
        """
        scores: dict[str, list[float]] = {}
        for example_id, _, score in self._results.scores(self._number(run_id)):
            scores.setdefault(example_id, []).append(score)
        return scores

    def verdicts(self, split: str) -> list[tuple[str, str, float]]:
        """Candidate, example id and score of every verdict on a split, by the first run that has it.

        On train those of runs that were cut too, else of finished ones only. One that several runs share comes once.
        """
        states = "('finished', 'cancelled')" if split == "train" else "('finished')"
        rows = self._query(
            "SELECT candidate, example_id, results.score, MIN(number) AS first FROM results JOIN runs ON number = run "
            f"WHERE split = ? AND state IN {states} AND counted = 1 GROUP BY candidate, example_id, detail "
            "ORDER BY first, position",
            split,
        )
        return [row[:3] for row in rows]

    def train_totals(self, candidate: str | None = None) -> dict[str, tuple[int, int, float]]:
        """By candidate: examples of train with a verdict in any run, how many passed every time, mean of their means.

        Of the verdicts that `verdicts` gives. `candidate`: only this one; None: all.
        """
        only, values = ("", ()) if candidate is None else (" AND candidate = ?", (candidate,))
        verdicts = (
            "SELECT DISTINCT candidate, example_id, detail, results.score AS score FROM results JOIN runs "
            f"ON number = run WHERE split = 'train' AND state IN ('finished', 'cancelled') AND counted = 1{only}"
        )
        means = f"SELECT candidate, AVG(score) AS mean FROM ({verdicts}) GROUP BY candidate, example_id"
        totals = f"SELECT candidate, COUNT(*), SUM(mean >= ?), AVG(mean) FROM ({means}) GROUP BY candidate"
        return {row[0]: cast("tuple[int, int, float]", row[1:]) for row in self._query(totals, PASSED_AT, *values)}

    def rollout_scores(self, run_id: str) -> list[RolloutScore]:
        """What is counted of each rollout of a run, by place. Raises `UnknownRunError`."""
        return self._results.rollout_scores(self._number(run_id))

    def example_heads(self, run_id: str, chars: int) -> list[tuple[str, str | None, str]]:
        """Of a run's examples by place: id, source id, and the first characters of the inputs, as the store's JSON.

        Raises `UnknownRunError`.
        """
        return self._results.example_heads(self._number(run_id), chars)

    def error_kinds(self, run_id: str) -> dict[str, int]:
        """How many rollouts of a run have an error of each kind. Raises `UnknownRunError`."""
        return self._results.error_kinds(self._number(run_id))

    def metric_works(self) -> bool:
        """Whether the metric has ever given an example a score."""
        return self._results.metric_works()

    def evaluated_examples(self) -> int:
        """Rollouts that were run, in all runs together."""
        return self._results.evaluated()

    def find_runs(
        self, split: str, prompts: Mapping[str, str], request: Mapping[str, Any], *, baseline: bool = False
    ) -> list[RunRecord]:
        """The runs that a request goes on with instead of beginning one, oldest first.

        Those that were cut, those on train with rollouts that have no verdict, and finished ones whose answer nobody
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
        return self._unpaid("evaluated = 0")

    def reusing_runs(self) -> tuple[int, int, int]:
        """How many runs have all of their verdicts from others, the bytes of what they were asked, and how many
        verdicts any run has from another."""
        (taken,) = self._query("SELECT COALESCE(SUM(reused), 0) FROM runs")[0]
        return *self._unpaid("evaluated > 0"), taken

    def _unpaid(self, which: str) -> tuple[int, int]:
        unpaid = (
            "SELECT COUNT(*), COALESCE(SUM(LENGTH(CAST(config AS BLOB))), 0) FROM runs WHERE NOT baseline "
            f"AND state != 'running' AND {which} AND number NOT IN (SELECT run FROM charges WHERE run IS NOT NULL)"
        )
        return cast("tuple[int, int]", self._query(unpaid)[0])

    def spare_rows(self, split: str, prompts: Mapping[str, str], *, but: Collection[str] = ()) -> tuple[Spare, Spare]:
        """Rows of these prompts in runs whose answers nobody has, and which no run has taken over yet.

        First those with a verdict, then those that show what was answered before their LM failed. Runs named in `but`
        and baselines are left out.
        """
        rows = self._query(
            "SELECT counted, run_id, example_id, number, position, rollout FROM runs JOIN results ON run = number "
            "WHERE split = ? AND candidate = ? AND NOT baseline AND NOT answered "
            "AND state IN ('cancelled', 'finished') AND counted IN (1, 2) AND NOT taken ORDER BY number DESC",
            split,
            Prompts.of(prompts).digest,
        )
        spare: dict[int, Spare] = {1: {}, 2: {}}
        for counted, run_id, example_id, *place in rows:
            if run_id not in but:
                spare[counted][example_id, place[2]] = cast("Place", tuple(place))
        return spare[1], spare[2]

    def judged_rows(self, split: str, prompts: Mapping[str, str]) -> Spare:
        """The newest verdicts on these prompts, in any run that has ended and whose metric did not fail."""
        rows = self._query(
            "SELECT example_id, number, position, rollout FROM runs JOIN results ON run = number "
            "WHERE split = ? AND candidate = ? AND state IN ('cancelled', 'finished') AND counted = 1 ORDER BY number",
            split,
            Prompts.of(prompts).digest,
        )
        return {(example_id, rollout): (number, position, rollout) for example_id, number, position, rollout in rows}

    # Spending.

    def charges(self) -> list[Charge]:
        """All charges, oldest first."""
        rows = self._query("SELECT amount, purpose FROM charges ORDER BY number")
        return self._read(lambda row: Charge(row[0], from_column(row[1])), rows)

    def charges_after(self, number: int) -> list[tuple[int, int, float]]:
        """Number, amount and Unix time of the charges after the one with this number, oldest first; 0: all."""
        rows = self._query("SELECT number, amount, at FROM charges WHERE number > ? ORDER BY number", number)
        return cast("list[tuple[int, int, float]]", rows)

    def spent(self, purpose: str | None = None) -> int:
        """Units charged, for one purpose or for all."""
        every = "SELECT COALESCE(SUM(amount), 0) FROM charges"
        rows = self._query(every) if purpose is None else self._query(f"{every} WHERE purpose = ?", as_column(purpose))
        return rows[0][0]

    def units_by_run(self) -> dict[str, int]:
        """The units charged for each run that cost any."""
        return dict(
            self._query("SELECT run_id, SUM(amount) FROM charges JOIN runs ON runs.number = run GROUP BY run_id")
        )

    def lm_usage(self) -> dict[Role, RoleUsage]:
        """What all LM calls so far amount to, by role."""
        rows = self._query(LM_USAGE)
        return dict(self._read(lambda row: (row[0], RoleUsage(*row[1:])), rows))

    # Prompts, turns and events.

    def prompts(self) -> dict[str, str] | None:
        """The prompt map set last; None: none was ever set."""
        every = "SELECT candidates.prompts FROM prompts JOIN candidates ON id = candidate"
        last = f"{every} ORDER BY prompts.number DESC LIMIT 1"
        maps: list[dict[str, str]] = self._read(lambda row: decode(from_column(row[0])), self._query(last))
        return maps[0] if maps else None

    def prompts_set(self) -> tuple[int, int]:
        """How often prompts were set, and how many bytes all the different maps of them have."""
        sizes = "SELECT LENGTH(CAST(prompts AS BLOB)) FROM candidates WHERE id IN (SELECT candidate FROM prompts)"
        (count,) = self._query("SELECT COUNT(*) FROM prompts")[0]
        return count, sum(row[0] for row in self._query(sizes))

    def candidates(self) -> list[CandidateRecord]:
        """Every prompt map that was evaluated or set, once, oldest first."""

        def record(row: tuple[Any, ...]) -> CandidateRecord:
            return CandidateRecord(row[0], row[1], decode(from_column(row[2])), row[3])

        return self._read(record, self._query("SELECT id, parent, prompts, at FROM candidates ORDER BY rowid"))

    def iterations(self) -> list[IterationRecord]:
        """All turns that have ended, oldest first."""
        return self._iterations("WHERE output IS NOT NULL ORDER BY number")

    def unfinished_iteration(self) -> IterationRecord | None:
        """The turn that was begun and has not ended, if there is one."""
        found = self._iterations("WHERE output IS NULL")
        return found[0] if found else None

    def events(self, kind: str | None = None, *, after: int = 0) -> list[EventRecord]:
        """All events, or those of one kind, oldest first; only those after the one with this number."""
        which, values = ("", ()) if kind is None else (" AND kind = ?", (as_column(kind),))
        rows = self._query(
            f"SELECT number, kind, data, at FROM events WHERE number > ?{which} ORDER BY number", after, *values
        )
        return self._read(event_record, rows)

    def last_written_at(self) -> float | None:
        """When something was last written down as it happened, Unix time; None: nothing ever was."""
        latest = " UNION ALL ".join(f"SELECT MAX({column}) AS at FROM {table}" for table, column in _WRITTEN_AT)
        return self._query(f"SELECT MAX(at) FROM ({latest})")[0][0]

    # Calls of tools.

    def keeps_calls(self) -> bool:
        """Whether the store is of a version that keeps the calls of tools."""
        return self._query("PRAGMA user_version")[0][0] >= 4

    def calls(self) -> list[MadeCall]:
        """All calls that the agent's code made of its tools, in the order of their answers, without these."""
        if not self.keeps_calls():
            return []
        rows = self._query("SELECT number, turn, tool, shown, request, stray FROM calls ORDER BY number")
        return self._read(made_call, rows)

    def call_reply(self, number: int) -> ToolReply:
        """What the call of this number got. Raises KeyError when there is none."""
        rows = self._query("SELECT answer, examples, error, left_out FROM calls WHERE number = ?", number)
        if not rows:
            raise KeyError(number)
        return self._read(tool_reply, rows)[0]

    def calls_size(self) -> tuple[int, int]:
        """How many calls are kept, and how many bytes what they got has together."""
        size = "LENGTH(CAST(COALESCE(answer, '') AS BLOB)) + LENGTH(CAST(COALESCE(examples, '') AS BLOB))"
        size += " + LENGTH(CAST(COALESCE(error, '') AS BLOB))"
        return cast("tuple[int, int]", self._query(f"SELECT COUNT(*), COALESCE(SUM({size}), 0) FROM calls")[0])

    def complete_ids(self, run_id: str) -> frozenset[str]:
        """The ids of the examples all of whose rollouts have a verdict: nothing of them will change any more."""
        return frozenset(self._results.complete_ids(self._number(run_id)))

    def worked_seconds(self) -> float:
        """How long processes have worked on this optimization, together, as far as the store can tell.

        Each from its beginning to the last thing that it wrote down, without the time in which the agent was paused.
        """
        begins = [record.at for record in self.events("CompileStarted")]
        paused_times = pauses(record for kind in MARKS for record in self.events(kind))
        written = " UNION ALL ".join(f"SELECT {column} FROM {table}" for table, column in _WRITTEN_AT)
        total = 0.0
        for begin, end in itertools.pairwise([*begins, float("inf")]):
            rows = self._query(f"SELECT max(at) FROM (SELECT 0.0 AS at UNION ALL {written}) WHERE at < ?", end)
            last = max(begin, rows[0][0])
            paused = sum(max(0.0, min(until, last) - max(since, begin)) for since, until in paused_times)
            total += last - begin - paused
        return total

    # SQLite.

    def _query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._file.query(sql, *values)

    def _one_document(self, column: str) -> dict[str, Any] | None:
        rows = self._query(f"SELECT {column} FROM compile WHERE {column} IS NOT NULL")
        found: list[dict[str, Any]] = self._read(lambda row: decode(from_column(row[0])), rows)
        return found[0] if found else None

    def _runs(self, clause: str, *values: Any) -> list[RunRecord]:
        with self._file.lock:
            rows = self._query(f"{RUNS} {clause}", *values)
            filled = [
                (*row[:12], *self._results.totals(row[0]), *row[22:]) if row[11] == "running" else row for row in rows
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

    def _read(self, make: Callable[[tuple[Any, ...]], _T], rows: Iterable[tuple[Any, ...]]) -> list[_T]:
        return decoded(make, rows, self.path)
