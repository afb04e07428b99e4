"""Resuming: which store a compile opens, and what earlier processes left in it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kernel_bridge import Restored
from kernel_bridge.text import shorten, shorten_list
from rlmoptimizer.agent.submission import SUBMISSION_FIELD
from rlmoptimizer.compilation.setup_record import differences
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.outcome.recorded_setup import branch_in
from rlmoptimizer.outcome.run_totals import cut_line, percent
from rlmoptimizer.outcome.turn_rows import turn_row
from rlmoptimizer.records import IterationRecord, RunRecord
from rlmoptimizer.steering.branches import check_parent_at_rest
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.directory import stores_in
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

__all__ = [
    "CUT_OUTPUT",
    "EarlierWork",
    "branch_text",
    "close_and_read_past",
    "found_line",
    "how_to_resume_line",
    "how_to_resume_note",
    "namespace_text",
    "open_store",
]

CUT_OUTPUT: Final = (
    "[Cut] The process ended before the output of this cell was recorded. The cell was not run again; "
    "what its tool calls did stands."
)
_MOST_NAMES, _CHARS = 60, 100  # variables that are listed; characters of a name or a reason
_MOST_RUNS, _MOST_CUT = 40, 10  # that are listed; `optimization_status()` has them all


@dataclass(frozen=True, slots=True)
class EarlierWork:
    """What earlier processes did of an optimization."""

    turns: tuple[IterationRecord, ...]  # that were begun, oldest first; () in a new one
    runs: tuple[RunRecord, ...]  # oldest first; those of the agent began in its turns
    submission: Any  # what the agent has submitted; None: nothing

    def trajectory(self) -> list[dict[str, Any]]:
        """The turns as the agent gets them."""
        return [turn_row(turn.number, turn) for turn in self.turns]

    def summary(self, *, max_turns: int, budget_left: int, namespace: str) -> str:
        """What the agent reads about it. `namespace`: a sentence on what its REPL holds."""
        done = len(self.turns)
        lines = [
            f"This work was interrupted and goes on: {done} of {max_turns} turns are done, {max_turns - done} left; "
            f"{budget_left} budget units are left. Prompts, runs and budget are as they were.",
            namespace,
        ]
        if done and self.turns[-1].output == CUT_OUTPUT:
            lines.append(
                f"Turn {done} was cut: previous_trajectory[-1] has its code, and no output. It was not run again."
            )
        lines += [cut_line(run) for run in self.runs if run.state == "cancelled" and not run.baseline][-_MOST_CUT:]
        ended = [run for run in self.runs if run.state != "cancelled"]
        left_out = f" (the last {_MOST_RUNS} of {len(ended)})" if len(ended) > _MOST_RUNS else ""
        told = "; ".join(_run_text(run) for run in ended[-_MOST_RUNS:])
        lines.append(f"Runs so far{left_out}: {told or 'none'}.")
        return "\n".join(lines)


def branch_text(branch: Mapping[str, Any], runs: Sequence[RunRecord]) -> str:
    """What the agent reads about the run that its optimization was branched from. `runs`: of this optimization."""
    measured = branch["run"]
    score = "no score" if measured["score"] is None else f"score {percent(measured['score']):.2f}"
    there = f" There it had {score} on {measured['evaluated_count']} of {measured['planned_count']} examples of "
    there = "" if measured["split"] == "test" else f"{there}{measured['split']}."  # the agent knows of no test set
    copied = [_run_text(run) for run in runs if run.turn == 0 and not run.baseline]
    here = f" Finished runs of these prompts came along, paid for: {'; '.join(copied)}." if copied else ""
    return (
        "A person has begun this work from a run of an earlier optimization of the same program on the same data. The "
        "current prompts are those of that run, and not the ones in program_steps; see optimization_status()"
        f"[\"current_prompts\"].{there}{here}"
    )


def namespace_text(interpreter: object, inputs: Collection[str]) -> str:
    """What the agent's new interpreter holds of its variables, as far as it says; `inputs` are there in any case."""
    restored = getattr(interpreter, "restored", None)
    if not isinstance(restored, Restored):
        return "The REPL is new: it holds none of your earlier variables."
    lost = [f"{shorten(name, _CHARS)} ({shorten(reason, _CHARS)})" for name, reason in restored.lost.items()]
    why_not = f"Not restored: {shorten_list(lost, _MOST_NAMES, '; ')}." if lost else ""
    if restored.problem is not None:
        return f"The REPL is new: the kept variables could not be used, because {restored.problem}."
    names = [shorten(name, _CHARS) for name in restored.names if not name.startswith("_") and name not in inputs]
    listed = shorten_list(names, _MOST_NAMES) or "none"
    held = f"The REPL holds your variables as of the end of turn {restored.label}: {listed}."
    return f"{held} {why_not} Files of the working directory are gone.".replace("  ", " ")


def open_store(directory: Path, setup: Mapping[str, Any], *, resume: bool) -> StoreReader:
    """The store for a compile with this setup, which is recorded in it: a new one, or with `resume` the newest one.

    A store whose optimization has finished is only read: it is no `RunStore`. Without any store a resume begins one, so
    a script that always resumes may be killed at any moment.
    Raises `InvalidSetup`, naming every difference, when the newest store is about something else; it is not touched.
    """
    if not resume or not stores_in(directory):
        store = RunStore.create_in(directory)
        Requests(store.path).clear()  # of an earlier one of this number, whose store somebody has removed
        return _recorded(store, setup)
    # Looked at without writing first: a store that is refused stays as it was.
    with StoreReader.open_in(directory) as store:
        _check_same(store, setup)
        check_parent_at_rest(store)
        path, finished = store.path, store.outcome() is not None
    return StoreReader.open(path) if finished else _recorded(RunStore.open(path), setup)


def close_and_read_past(store: RunStore) -> EarlierWork:
    """Close what a process left open in the store when it ended, and say what there is."""
    store.cut_runs()
    cut = store.unfinished_iteration()
    if cut is not None:
        store.record_iteration(cut.reasoning, cut.code, CUT_OUTPUT, answered=False)
    submission = store.submission()
    submitted = None if submission is None else submission.get(SUBMISSION_FIELD)
    return EarlierWork(tuple(store.iterations()), tuple(store.runs()), submitted)


def found_line(store: StoreReader) -> str:
    """What is said when a compile that resumes has found its store."""
    where = str(store.path)
    if store.outcome() is not None:
        return f"RLMDocstringOptimizer: the optimization in {where} is finished; this is its result."
    branch = branch_in(store.setup())
    if branch is not None and not branch["begun"]:
        return f"RLMDocstringOptimizer: the branch in {where} begins, from run {branch['run_id']} of {branch['store']}."
    runs = store.run_count()
    turns = len(store.iterations()) + (store.unfinished_iteration() is not None)  # that was cut counts as one
    if not runs:
        nothing = f"there was nothing to resume in {store.path.parent}"
        return f"RLMDocstringOptimizer: {nothing}; a new one begins in {where}."
    return f"RLMDocstringOptimizer: going on with {where}: so far runs {runs}, turns of the agent {turns}."


def how_to_resume_line(store_path: Path, error: BaseException) -> str:
    """What is said when an optimization ends before its end."""
    paused = ""
    if Requests(store_path).pausing:
        paused = f" It is paused, and waits again then, until `rlmoptimizer unpause {store_path.parent}`."
    return (
        f"RLMDocstringOptimizer stopped ({type(error).__name__}). All that had finished is in {store_path}: go on with "
        f"{_how(store_path)}.{paused}"
    )


def how_to_resume_note(store_path: Path) -> str:
    """The same once more, for the end of a traceback: what was said before it has scrolled away."""
    return f"To go on: {_how(store_path)}"


def _how(store_path: Path) -> str:
    return f"compile(..., resume=True) and run_storage_dir={str(store_path.parent)!r}"


def _recorded(store: RunStore, setup: Mapping[str, Any]) -> RunStore:
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        if store.setup() is None:  # a new one, or one whose process was killed before it came to this
            store.record_setup(setup)
        else:
            _check_same(store, setup)  # somebody may have been faster
        stack.pop_all()
    return store


def _check_same(store: StoreReader, setup: Mapping[str, Any]) -> None:
    recorded = store.setup()
    if recorded is None:
        return
    if found := differences(recorded, setup):
        raise InvalidSetup(
            f"the optimization in {store.path} cannot be resumed, because this is another one: {'; '.join(found)}. "
            "Make it the same again to go on, or pass resume=False to begin a new one beside it; it is left as it was"
        )


def _run_text(run: RunRecord) -> str:
    score = "no score" if run.score is None else f"score {percent(run.score):.2f}"
    what = " (baseline)" if run.baseline else ""
    return f"{run.run_id} on {run.split}{what}: {score} on {run.evaluated_count} of {run.planned_count}"
