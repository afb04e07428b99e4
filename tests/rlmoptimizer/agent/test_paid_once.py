"""The ledger's law for evaluations that repeat examples and reuse verdicts, cut and continued at random: a property.

A model says what each request must cost: what a cut run of the same request lacks, else what no run that nobody has the
answer of, and with `reuse` no run at all, has a verdict for. So nothing that was paid is run or paid again.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import pytest
from desk import Desk, desk
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stored_runs import copy_as_killed

from rlmoptimizer.errors import BudgetExceededError
from rlmoptimizer.records import Rollout, rollouts_of

EXAMPLES, BUDGET = 4, 60
TEXTS = ["In one word.", "In a phrase."]


@dataclass(frozen=True)
class Asked:
    text: str
    ids: tuple[str, ...]
    repeats: int
    reuse: bool

    @property
    def rollouts(self) -> list[Rollout]:
        return list(rollouts_of(self.ids, self.repeats))

    def arguments(self) -> dict[str, Any]:
        return {"prompts": {"topic": self.text}, "ids": list(self.ids), "repeats": self.repeats, "reuse": self.reuse}


@dataclass
class Run:
    asked: Asked
    done: set[Rollout] = field(default_factory=set[Rollout])
    taken: set[Rollout] = field(default_factory=set[Rollout])
    is_cut: bool = False  # and so its answer is nobody's

    @property
    def missing(self) -> list[Rollout]:
        return [rollout for rollout in self.asked.rollouts if rollout not in self.done]


requests = st.builds(
    Asked,
    st.sampled_from(TEXTS),
    st.sets(st.sampled_from("1234"), min_size=1).map(lambda ids: tuple(sorted(ids))),
    st.integers(1, 3),
    st.booleans(),
)


class PaidOnce(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.stack = contextlib.ExitStack()
        self.kills = 0
        self.judged = 0  # by the metric, in all processes
        self.cut_at: int | None = None  # of `judged`
        self.spent = 0
        self.runs: list[Run] = []
        self.at = self.desk(Path(self.directory.name) / "0", again=False)

    def teardown(self) -> None:
        self.stack.close()
        self.directory.cleanup()

    def desk(self, path: Path, *, again: bool) -> Desk:
        return self.stack.enter_context(
            desk(
                path,
                train=EXAMPLES,
                val=None,
                budget=BUDGET,
                baseline=False,
                threads=1,
                metric=self.metric,
                again=again,
            )
        )

    def metric(self, gold: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        self.judged += 1
        if self.judged == self.cut_at:
            self.at.bench.runs.kernel_died()
        return float(prediction.answer == gold.answer)

    def taken_over(self, asked: Asked) -> set[Rollout]:
        """What a new run for a request has without running it; what it takes of cut runs is taken then."""
        wanted = set(asked.rollouts)
        found: set[Rollout] = set()
        for rollout in wanted:
            same = [run for run in self.runs if run.asked.text == asked.text and rollout in run.done]
            spare = [run for run in same if run.is_cut and rollout not in run.taken]
            # The newest of all where verdicts are reused, else the oldest that is nobody's.
            source = same[-1] if asked.reuse and same else spare[0] if spare else None
            if source is not None:
                source.taken.add(rollout)
                found.add(rollout)
        return found

    def begun(self, asked: Asked) -> tuple[Run, set[Rollout]]:
        cut = [run for run in self.runs if run.asked == asked and run.is_cut]
        if cut:
            return cut[0], set()
        taken = self.taken_over(asked)
        return Run(asked), taken

    @rule(asked=requests, cut_after=st.none() | st.integers(1, 8))
    def ask(self, asked: Asked, cut_after: int | None) -> None:
        self.evaluate(asked, cut_after)

    @precondition(lambda self: any(run.is_cut for run in self.runs))
    @rule(data=st.data(), cut_after=st.none() | st.integers(1, 3))
    def ask_again_what_was_cut(self, data: st.DataObject, cut_after: int | None) -> None:
        cut = [run.asked for run in self.runs if run.is_cut]
        self.evaluate(data.draw(st.sampled_from(cut)), cut_after)

    def evaluate(self, asked: Asked, cut_after: int | None) -> None:
        before = {id(run): set(run.taken) for run in self.runs}
        run, taken = self.begun(asked)
        missing = [rollout for rollout in run.missing if rollout not in taken]
        if len(missing) > BUDGET - self.spent:
            for one in self.runs:
                one.taken = before[id(one)]
            with pytest.raises(BudgetExceededError) as refused:
                self.at.evaluate(**asked.arguments())
            assert (refused.value.asked, refused.value.left) == (len(missing), BUDGET - self.spent)
            return
        judged = self.judged
        self.cut_at = None if cut_after is None else judged + cut_after
        answer = self.at.evaluate(**asked.arguments())
        self.cut_at = None
        ran = len(missing) if cut_after is None else min(cut_after, len(missing))
        assert self.judged - judged == ran
        self.spent += ran
        if run not in self.runs:
            self.runs.append(run)
        run.done |= taken | set(missing[:ran])
        run.is_cut = ran < len(missing)
        assert answer["run_id"] == f"r{next(n for n, one in enumerate(self.runs, 1) if one is run)}"
        assert answer["remaining_budget"] == BUDGET - self.spent
        self.at.store.record_iteration("", "", "", val_given=self.at.bench.runs.given())
        self.at.bench.runs.turn_ended()

    @rule(killed=st.booleans())
    def end_and_come_back(self, killed: bool) -> None:
        self.kills += 1
        path = self.at.store.path.parent
        if killed:
            path = copy_as_killed(self.at.store, Path(self.directory.name) / str(self.kills)).parent
        self.stack.close()
        self.at = self.desk(path, again=True)

    @invariant()
    def the_law_holds(self) -> None:
        state = self.at.ledger.state()
        assert (state.spent, state.reserved, state.left) == (self.spent, 0, BUDGET - self.spent)
        assert self.at.store.spent() == self.at.store.evaluated_examples() == self.judged == self.spent
        for record, run in zip(self.at.store.runs(), self.runs, strict=True):
            assert (record.judged_count, record.missing_count) == (len(run.done), len(run.missing))
            assert record.state == ("cancelled" if run.is_cut else "finished")
        # Whatever was cut and continued: each run has one verdict at most for a rollout.
        for record in self.at.store.runs():
            rows = [(row.example_id, row.rollout) for row in self.at.store.examples(record.run_id)]
            assert len(rows) == len(set(rows))


TestPaidOnce = PaidOnce.TestCase
TestPaidOnce.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
