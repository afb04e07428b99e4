"""The document: all that the page shows of an optimization but the details of its examples, as JSON holds it.

Scores are 0 to 100, times are Unix seconds. There is nothing in it of an example of val or test. Imports no DSPy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.outcome.best_so_far import BestSoFar, Checkpoint, UnitsSpent
from rlmoptimizer.outcome.ending import AgentOutcome, Choice, Outcome
from rlmoptimizer.outcome.measured import best_candidate
from rlmoptimizer.outcome.optimization_result import OptimizationResult
from rlmoptimizer.outcome.phases import phase_seconds
from rlmoptimizer.outcome.recorded_setup import split_sizes, unit_limit
from rlmoptimizer.outcome.split_result import SplitResult
from rlmoptimizer.outcome.split_scores import CandidateScores, SplitScores
from rlmoptimizer.outcome.state import OptimizationState, state_of
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import EventRecord, RunRecord, total_usd, usage_dict
from rlmoptimizer.show.report.candidates import CandidateEntry, Candidates
from rlmoptimizer.show.report.examples import ExampleEntry, ExamplesEntry, Heads, Sides
from rlmoptimizer.show.report.grid import Grid, GridEntry
from rlmoptimizer.show.report.json_values import as_json
from rlmoptimizer.show.report.runs import BestPoint, best_points, run_entries
from rlmoptimizer.show.report.task import (
    ConfinementEntry,
    TaskEntry,
    confinement,
    repeat_lines,
    task_entry,
    title,
)
from rlmoptimizer.show.report.turns import (
    DeathEntry,
    NoteEntry,
    PauseEntry,
    TurnEntry,
    Turns,
    deaths,
    notes,
    pauses,
)
from rlmoptimizer.steering.branches import awaited_parent
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.directory import number_of
from rlmoptimizer.store.file_lock import holder
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["AskedEntry", "Document", "DocumentReader", "SoFar", "StoreEntry", "read_document", "read_examples"]

_FORMAT = 1


class StoreEntry(TypedDict):
    path: str
    number: int | None  # of the optimization in its directory; None: its file has another name
    name: str  # of the file


class AskedEntry(TypedDict):
    """What people have asked for, and the agent has not come to yet."""

    pausing: bool
    notes: list[str]  # oldest first


class SoFar(TypedDict):
    splits: dict[str, dict[str, Any]]  # train and val: the unchanged program against the best, as in the result
    best: int | None  # the candidate with the best score on the whole of val (train without one); None: there is none


class Document(TypedDict):
    format: int
    title: str
    store: StoreEntry
    state: OptimizationState
    now: float
    started_at: float | None
    finished_at: float | None
    dead_since: float | None  # when an interrupted one last wrote something down; None: it is not interrupted
    task: TaskEntry
    budget: dict[str, int]  # "limit", "spent" and "left", in units
    usage: dict[str, dict[str, Any]]  # of the LM calls by role, as in the result
    cost_usd: float | None  # None: a price is not known
    seconds: dict[str, float]  # by phase
    versions: dict[str, str]  # {} until it has ended
    scored_split: str  # by which candidates are compared: "val", or "train" without one
    result: dict[str, Any] | None  # `OptimizationResult.to_dict()`; None: it has not ended
    so_far: SoFar | None  # None: it has ended
    candidates: list[CandidateEntry]
    runs: list[dict[str, Any]]
    best_so_far: list[BestPoint]
    grid: GridEntry
    examples: ExamplesEntry
    turns: list[TurnEntry]
    notes: list[NoteEntry]
    pauses: list[PauseEntry]
    asked: AskedEntry
    deaths: list[DeathEntry]
    confinement: ConfinementEntry | None
    repeat: list[str]


def read_document(store: StoreReader) -> Document:
    """The document of an optimization at this moment. `store` was opened to be read.

    Raises `InvalidSetup` when it has not begun, and `StoreCorrupt`.
    """
    return DocumentReader(store).read()


def read_examples(store: StoreReader, chunk: int) -> list[ExampleEntry]:
    """A chunk of the document's examples, in its order. Raises IndexError when there is no such chunk."""
    reader = DocumentReader(store)
    reader.read()
    return reader.examples(chunk)


class DocumentReader:
    """Reads the document again and again, what cannot change any more only once. Thread-safe."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store
        self._lock = threading.Lock()  # of all that follows
        self._scores = {split: SplitScores(store, split) for split in ("train", "val", "test")}
        self._spent = UnitsSpent(store)
        self._events: list[EventRecord] = []
        self._heads = Heads(store)
        self._grid = Grid()
        self._splits: dict[str, tuple[CandidateScores, CandidateScores, dict[str, Any]]] = {}
        self._curve: BestSoFar | None = None
        self._sides = Sides((), None, None, None)
        self._finished: Document | None = None

    def read(self) -> Document:
        """As `read_document` does. What is in it must not be changed."""
        with self._lock:
            if self._finished is None:
                state = state_of(self._store)
                with self._store.snapshot():
                    document = self._read(state)
                if state != "finished":
                    return document
                self._finished = document
            return {**self._finished, "now": time.time()}

    def examples(self, chunk: int) -> list[ExampleEntry]:
        """A chunk of the examples of the document that was read last. Raises IndexError when there is no such chunk."""
        return list(self.each_example(chunk))

    def each_example(self, chunk: int) -> Iterator[ExampleEntry]:
        """The same, one at a time."""
        with self._lock:
            sides = self._sides
        return sides.chunk(self._store, chunk)

    @property
    def chunk_count(self) -> int:
        """Of the document that was read last."""
        with self._lock:
            return self._sides.chunk_count()

    def _read(self, state: OptimizationState) -> Document:
        store, setup = self._store, self._store.setup()
        began, ended = store.began_and_ended()
        if setup is None or began is None:
            raise InvalidSetup(f"the optimization in {store.path} has not begun; ask again in a moment")
        self._events += store.events(after=self._events[-1].number if self._events else 0)
        self._spent.update()
        runs, sizes, outcome = store.runs(), split_sizes(setup), Outcome.of(store)
        agent, choice = AgentOutcome.of(store), Choice.of(store)
        unchanged = Prompts.of(setup["student"]["steps"])
        turns = Turns(store.iterations(), store.unfinished_iteration())
        kept = {run.candidate for run in runs} | _told_of(store, agent, choice)
        candidates = Candidates.of(store.candidates(), unchanged, began, kept=kept, turn_at=turns.at)
        scores = {split: self._scores[split].by_candidate(runs) for split in sizes}
        scored = "val" if "val" in sizes else "train"
        best = best_candidate({one: own.scores for one, own in scores[scored].items()}, sizes[scored])
        shown = best if choice is None else choice.candidate
        ids = self._read_examples(runs, sizes["train"], scores["train"], unchanged.digest, shown, candidates)
        died, said = deaths(self._events), notes(self._events)
        usage, cost_usd = _usage_and_cost(store, outcome)
        versions = {} if outcome is None else outcome.versions
        return {
            "format": _FORMAT,
            "title": title(setup),
            "store": _store_entry(store),
            "state": state,
            "now": time.time(),
            "started_at": began,
            "finished_at": ended,
            "dead_since": store.last_written_at() if state == "interrupted" else None,
            "task": task_entry(setup, _is_parent_at_work(store)),
            "budget": self._budget(setup),
            "usage": usage,
            "cost_usd": cost_usd,
            "seconds": phase_seconds(self._events),
            "versions": versions,
            "scored_split": scored,
            "result": None if outcome is None else as_json(OptimizationResult.of(store).to_dict()),
            "so_far": None if outcome is not None else self._so_far(sizes, scores, unchanged.digest, best, candidates),
            "candidates": candidates.entries(runs, scores, turns.at, agent, choice),
            "runs": run_entries(runs, candidates.places, self._spent),
            "best_so_far": best_points(self._checkpoints(runs, scored, sizes[scored]), scored),
            "grid": self._grid.entry(ids, candidates.places, scores["train"]),
            "examples": self._sides.entry(self._heads),
            "turns": turns.entries(runs, self._events, died, said),
            "notes": said,
            "pauses": pauses(self._events),
            "asked": _asked(store, state),
            "deaths": died,
            "confinement": confinement(self._events),
            "repeat": repeat_lines(setup, versions, store.path),
        }

    def _budget(self, setup: Mapping[str, Any]) -> dict[str, int]:
        limit, spent = unit_limit(setup), self._spent.in_all
        return {"limit": limit, "spent": spent, "left": limit - spent}

    def _read_examples(
        self,
        runs: Sequence[RunRecord],
        count: int,
        scores: Mapping[str, CandidateScores],
        unchanged: str,
        shown: str | None,
        candidates: Candidates,
    ) -> Sequence[str]:
        """Look up the sides and the heads of the examples; gives the ids of train."""
        whole = next((run.run_id for run in runs if run.baseline and run.split == "train"), None)
        ids = tuple(map(str, range(1, count + 1))) if whole is None else self._store.planned_ids(whole)
        after = None if shown is None or shown == unchanged else shown
        place = None if after is None else candidates.places.get(after)
        self._sides = Sides(ids, scores.get(unchanged), None if after is None else scores.get(after), place)
        self._heads.update(runs, count)
        return ids

    def _checkpoints(self, runs: Sequence[RunRecord], split: str, examples: int) -> tuple[Checkpoint, ...]:
        if self._curve is None:
            self._curve = BestSoFar(self._store, split, examples, self._spent)
        return self._curve.checkpoints(runs)

    def _so_far(
        self,
        sizes: Mapping[str, int],
        scores: Mapping[str, Mapping[str, CandidateScores]],
        unchanged: str,
        best: str | None,
        candidates: Candidates,
    ) -> SoFar:
        splits: dict[str, dict[str, Any]] = {}
        for split in ("train", "val"):
            before, after = scores.get(split, {}).get(unchanged), scores.get(split, {}).get(best or "")
            if before is None or after is None:
                continue
            known = self._splits.get(split)
            if known is None or known[0] is not before or known[1] is not after:
                found = SplitResult.of(before.scores, after.scores, sizes[split])
                self._splits[split] = known = before, after, found.to_dict()
            splits[split] = known[2]
        return {"splits": splits, "best": None if best is None else candidates.places.get(best)}


def _told_of(store: StoreReader, agent: AgentOutcome | None, choice: Choice | None) -> set[str]:
    """Ids of the prompts that are set, were submitted and are given back."""
    prompts = [store.prompts(), None if agent is None else agent.prompts, None if choice is None else choice.prompts]
    return {Prompts.of(one).digest for one in prompts if one}


def _usage_and_cost(store: StoreReader, outcome: Outcome | None) -> tuple[dict[str, Any], float | None]:
    """Of all LM calls: by role, and in US dollars."""
    if outcome is not None:
        return outcome.usage, outcome.cost_usd
    used = store.lm_usage()
    return usage_dict(used), total_usd(used)


def _is_parent_at_work(store: StoreReader) -> bool:
    parent = awaited_parent(store)
    return parent is not None and holder(parent) is not None


def _asked(store: StoreReader, state: OptimizationState) -> AskedEntry:
    if state == "finished":
        return {"pausing": False, "notes": []}
    requests = Requests(store.path)
    return {"pausing": requests.pausing, "notes": requests.note_texts()}


def _store_entry(store: StoreReader) -> StoreEntry:
    return {"path": str(store.path), "number": number_of(store.path), "name": store.path.name}
