"""The candidates as the page shows them: their prompts, where they came from, and what they scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypedDict

from rlmoptimizer.outcome.ending import AgentOutcome, Choice
from rlmoptimizer.outcome.split_scores import CandidateScores
from rlmoptimizer.prompts import Prompts, changed_steps
from rlmoptimizer.records import PASSED_AT, CandidateRecord, RunRecord

__all__ = ["CandidateEntry", "Candidates", "SplitTotals", "TrainTotals"]

Scores = Mapping[str, Mapping[str, CandidateScores]]  # split -> candidate -> what it has there


class SplitTotals(TypedDict):
    n: int  # examples of the split with a score
    score: float  # the mean over them, 0 to 100


class TrainTotals(SplitTotals):
    passed: int  # of these: every verdict is a pass


class CandidateEntry(TypedDict):
    index: int  # its place in the list
    id: str
    parent: int | None  # the candidate of the page that was set before it; None: it is the unchanged program
    prompts: dict[str, str]  # by step
    changed: list[str]  # steps whose prompts differ from the parent's
    at: float
    turn: int  # of the agent, in which it came up; 0: before the first
    runs: list[str]
    scores: dict[str, Any]  # "train": TrainTotals | None, "val" and "test": SplitTotals | None; splits that there are
    is_baseline: bool
    is_result: bool  # it is given back
    is_submitted: bool  # by the agent


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates in the order of the page: the unchanged program first, then as they came up.

    An agent that sets the prompts of ten steps comes by nine maps that it never meant. These are left out: what was
    never run, and was completed in the same turn. What came from one has its parent.
    """

    records: Sequence[CandidateRecord]
    places: Mapping[str, int]  # of their ids
    parents: Mapping[str, str]  # of their ids: the id of the one that they came from

    @classmethod
    def of(
        cls,
        records: Sequence[CandidateRecord],
        unchanged: Prompts,
        began: float,
        *,
        kept: Set[str] = frozenset(),
        turn_at: Callable[[float], int] = int,
    ) -> Candidates:
        """`kept`: ids that are shown in any case. `turn_at`: of a time, the agent's turn."""
        first = next((one for one in records if one.candidate == unchanged.digest), None)
        first = first or CandidateRecord(unchanged.digest, None, dict(unchanged), began)  # no run has begun
        every = [first, *(one for one in records if one.candidate != unchanged.digest)]
        parents: dict[str, str] = {}
        for one in every[1:]:  # before any prompt was set, the unchanged ones were
            parents[one.candidate] = one.parent if one.parent in parents else first.candidate
        left_out = _half_set(every, parents, kept | {first.candidate}, turn_at)
        ordered = [one for one in every if one.candidate not in left_out]
        for one in ordered[1:]:
            while parents[one.candidate] in left_out:
                parents[one.candidate] = parents[parents[one.candidate]]
        return cls(ordered, {one.candidate: place for place, one in enumerate(ordered)}, parents)

    def entries(
        self,
        runs: Sequence[RunRecord],
        scores: Scores,
        turn_at: Callable[[float], int],
        agent: AgentOutcome | None,
        choice: Choice | None,
    ) -> list[CandidateEntry]:
        submitted = None if agent is None or agent.prompts is None else Prompts.of(agent.prompts).digest
        of_candidate: dict[str, list[str]] = {}
        for run in runs:
            of_candidate.setdefault(run.candidate, []).append(run.run_id)
        entries: list[CandidateEntry] = []
        for index, record in enumerate(self.records):
            parent = self.places[self.parents[record.candidate]] if index else None
            before = {} if parent is None else self.records[parent].prompts
            entries.append(
                {
                    "index": index,
                    "id": record.candidate,
                    "parent": parent,
                    "prompts": record.prompts,
                    "changed": changed_steps(record.prompts, before) if index else [],
                    "at": record.at,
                    "turn": turn_at(record.at) if index else 0,
                    "runs": of_candidate.get(record.candidate, []),
                    "scores": {split: _totals(split, own.get(record.candidate)) for split, own in scores.items()},
                    "is_baseline": not index,
                    "is_result": choice is not None and choice.candidate == record.candidate,
                    "is_submitted": submitted == record.candidate,
                }
            )
        return entries


def _half_set(
    records: Sequence[CandidateRecord],
    parents: Mapping[str, str],
    kept: Set[str],
    turn_at: Callable[[float], int],
) -> set[str]:
    """Ids of maps of which another one of the same turn has all that was new in them, and more."""
    by_id = {one.candidate: one for one in records}
    found: set[str] = set()
    for one in records:
        before = by_id[parents.get(one.candidate, one.candidate)]
        if before.candidate in kept or turn_at(before.at) != turn_at(one.at):
            continue
        earlier = by_id[parents[before.candidate]].prompts
        new = [step for step, text in before.prompts.items() if earlier.get(step) != text]
        if all(one.prompts.get(step) == before.prompts[step] for step in new):
            found.add(before.candidate)
    return found


def _totals(split: str, found: CandidateScores | None) -> SplitTotals | TrainTotals | None:
    if found is None or not found.scores:
        return None
    values = found.scores.values()
    totals: SplitTotals = {"n": len(values), "score": 100.0 * (math.fsum(values) / len(values))}
    return {**totals, "passed": sum(value >= PASSED_AT for value in values)} if split == "train" else totals
