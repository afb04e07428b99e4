"""Runs that are cut, found again, reopened and taken over, the turns between them and their LM calls, against a model.

What `test_run_store.py` holds against its model (any values, charges, prompts) is not repeated here.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stored_runs import copy_as_killed, result

from rlmoptimizer.records import ExampleResult, LMCall, Role, RoleUsage, Rollout, RunRecord, StepTrace, rollouts_of
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.store.takeover_reader import Spare

PROMPTS = [{"a": "one"}, {"a": "two"}]
REQUESTS = [{"limit": None}, {"limit": 2}]
IDS = ["1", "2", "3", "4"]


@dataclass
class Row:
    result: ExampleResult
    origin: str | None = None  # the run it was taken over from
    taken: bool = False

    @property
    def kept(self) -> ExampleResult:
        return dataclasses.replace(self.result, reused=self.origin is not None)

    @property
    def shows_answers(self) -> bool:
        return not self.result.has_verdict and bool(self.result.steps)


@dataclass
class Run:
    run_id: str
    prompts: dict[str, str]
    request: dict[str, Any]
    baseline: bool
    planned: list[str]
    repeats: int
    rows: dict[Rollout, Row]
    state: str = "running"
    answered: bool = False

    @property
    def missing(self) -> list[Rollout]:
        done = {rollout for rollout, row in self.rows.items() if row.result.has_verdict}
        return [rollout for rollout in rollouts_of(self.planned, self.repeats) if rollout not in done]

    @property
    def verdicts(self) -> dict[str, list[float]]:
        """The scores of each example."""
        scores: dict[str, list[float]] = {}
        for example_id, number in sorted(self.rows, key=lambda rollout: (self.planned.index(rollout[0]), rollout[1])):
            if (row := self.rows[example_id, number]).result.has_verdict:
                scores.setdefault(example_id, []).append(row.result.score)
        return scores

    @property
    def unanswered(self) -> int:
        return sum(not row.result.has_verdict for row in self.rows.values())

    @property
    def may_be_gone_on_with(self) -> bool:
        return self.state in ("cancelled", "finished")


@dataclass
class Model:
    runs: list[Run] = field(default_factory=list[Run])
    turns: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # code and output
    begun: str | None = None  # the code of a turn under way
    submission: dict[str, Any] | None = None
    calls: list[LMCall] = field(default_factory=list[LMCall])
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def found(self, prompts: dict[str, str], request: dict[str, Any], baseline: bool) -> list[Run]:
        return [
            run
            for run in self.runs
            if (run.prompts, run.request, run.baseline) == (prompts, request, baseline)
            and run.may_be_gone_on_with
            and (not run.answered or run.unanswered)
        ]

    def spare(
        self, prompts: dict[str, str], but: set[str], *, judged: bool = True
    ) -> dict[Rollout, tuple[Run, Row]]:
        """The oldest of each rollout; `judged` False: those that have no verdict but show an answer."""
        spare: dict[Rollout, tuple[Run, Row]] = {}
        for run in self.runs:
            if run.prompts == prompts and not run.baseline and not run.answered and run.may_be_gone_on_with:
                for rollout, row in run.rows.items():
                    fits = row.result.has_verdict if judged else row.shows_answers
                    if run.run_id not in but and fits and not row.taken:
                        spare.setdefault(rollout, (run, row))
        return spare


def sources(spare: Spare) -> dict[Rollout, str]:
    """Each rollout -> the run it would be taken over from."""
    return {rollout: f"r{number}" for rollout, (number, _, _) in spare.items()}


class Takeovers(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.copies = 0
        self.store = RunStore.create_in(self.directory.name)
        self.store.record_setup({"seed": 0})
        self.reader = StoreReader.open(self.store.path)
        self.model = Model()

    def teardown(self) -> None:
        self.reader.close()
        self.store.close()
        self.directory.cleanup()

    def in_state(self, *states: str) -> list[Run]:
        return [run for run in self.model.runs if run.state in states]

    @rule(
        prompts=st.sampled_from(PROMPTS),
        request=st.sampled_from(REQUESTS),
        planned=st.permutations(IDS).flatmap(lambda ids: st.integers(0, 4).map(lambda count: ids[:count])),
        baseline=st.sampled_from([False, False, False, True]),
        repeats=st.integers(1, 3),
        takes_over=st.booleans(),
        data=st.data(),
    )
    def begin(
        self,
        prompts: dict[str, str],
        request: dict[str, Any],
        planned: list[str],
        baseline: bool,
        repeats: int,
        takes_over: bool,
        data: st.DataObject,
    ) -> None:
        busy = data.draw(st.sets(st.sampled_from([run.run_id for run in self.model.runs] or ["r0"]), max_size=1))
        spare, owed = self.store.spare_rows("train", prompts, but=busy)
        expected = self.model.spare(prompts, busy)
        assert sources(spare) == {rollout: run.run_id for rollout, (run, _) in expected.items()}
        spare = {**owed, **spare}
        expected = {**self.model.spare(prompts, busy, judged=False), **expected}
        wanted = set(rollouts_of(planned, repeats)) if takes_over and not baseline else set[Rollout]()
        run_id = self.store.begin_run(
            "train",
            {},
            prompts,
            baseline=baseline,
            planned_ids=planned,
            repeats=repeats,
            request=request,
            spare={rollout: place for rollout, place in spare.items() if rollout in wanted},
        )
        rows: dict[Rollout, Row] = {}
        for rollout in wanted & set(expected):
            run, row = expected[rollout]
            row.taken = True
            rows[rollout] = Row(row.result, run.run_id)
        self.model.runs.append(Run(run_id, prompts, request, baseline, planned, repeats, rows))
        self.go_on(self.model.runs[-1], data)

    @precondition(lambda self: self.in_state("running"))
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        self.go_on(data.draw(st.sampled_from(self.in_state("running"))), data)

    def go_on(self, run: Run, data: st.DataObject) -> None:
        """Some of its rollouts get results, and it may end."""
        for example_id, number in run.missing:
            how = data.draw(st.sampled_from(["right", "wrong", "fails", "fails late", "waits"]))
            if how != "waits":
                failure: dict[str, Any] = {}
                if how.startswith("fails"):
                    step = StepTrace(0, "a", "A", {}, {"b": run.run_id})
                    steps = (step,) if how == "fails late" else ()
                    failure = {"error": "429", "error_kind": "rate_limit", "predicted": None, "steps": steps}
                one = result(example_id, float(how == "right"), feedback=run.run_id, rollout=number, **failure)
                self.store.append(run.run_id, one)
                run.rows[example_id, number] = Row(one)
        self.end(run, data.draw(st.sampled_from(["running", "cancelled", "finished", "failed"])))

    def end(self, run: Run, state: str) -> None:
        if state != "running":
            self.store.finish_run(run.run_id, cancelled=state == "cancelled", failed=state == "failed")
        run.state = state

    @precondition(lambda self: self.in_state("cancelled", "finished"))
    @rule(data=st.data())
    def reopen(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.in_state("cancelled", "finished")))
        assert list(self.store.reopen_run(run.run_id)) == run.missing
        run.state = "running"

    @rule(code=st.sampled_from(["print(1)", ""]))
    def begin_turn(self, code: str) -> None:
        self.store.begin_iteration(code)
        self.model.begun = code

    @rule(answered=st.booleans(), submits=st.booleans(), output=st.text(max_size=5))
    def end_turn(self, answered: bool, submits: bool, output: str) -> None:
        submission = {"a": output} if submits else None
        number = self.store.record_iteration("why", "code", output, answered=answered, submission=submission)
        self.model.turns.append(("code", output))
        assert number == len(self.model.turns)
        self.model.begun = None
        self.model.submission = submission or self.model.submission
        for run in self.in_state("finished"):
            run.answered = run.answered or (answered and not run.baseline)

    @rule(role=st.sampled_from(["root", "sub", "eval"]), cost=st.none() | st.integers(0, 10**15))
    def call(self, role: Role, cost: int | None) -> None:
        calls = [LMCall(role, "m", "answered", 1, None, cost)] * 2
        self.store.record_lm_calls(*calls)
        self.model.calls += calls

    @rule(kind=st.sampled_from(["A", "B"]), number=st.integers())
    def event(self, kind: str, number: int) -> None:
        self.store.record_event(kind, {"number": number})
        self.model.events.append({"number": number})

    @rule(killed=st.booleans())
    def end_and_come_back(self, killed: bool) -> None:
        self.copies += 1
        self.reader.close()
        path = copy_as_killed(self.store, Path(self.directory.name) / str(self.copies)) if killed else self.store.path
        self.store.close()
        self.store, self.reader = RunStore.open(path), StoreReader.open(path)
        assert [run.run_id for run in self.store.cut_runs()] == [run.run_id for run in self.in_state("running")]
        for run in self.in_state("running"):
            run.state = "cancelled"

    @invariant()
    def runs_are_found_as_they_should(self) -> None:
        for prompts in PROMPTS:
            for request in REQUESTS:
                for baseline in (True, False):
                    found = self.store.find_runs("train", prompts, request, baseline=baseline)
                    expected = self.model.found(prompts, request, baseline)
                    assert [run.run_id for run in found] == [run.run_id for run in expected]
                asked = [run for run in self.model.runs if (run.prompts, run.request) == (prompts, request)]
                assert self.store.count_runs("train", prompts, request) == len(asked)
                assert self.store.find_runs("val", prompts, request) == []
            spare = {one: run.run_id for one, (run, _) in self.model.spare(prompts, set()).items()}
            shown = {one: run.run_id for one, (run, _) in self.model.spare(prompts, set(), judged=False).items()}
            assert [sources(rows) for rows in self.store.spare_rows("train", prompts)] == [spare, shown]
            assert self.store.spare_rows("val", prompts) == ({}, {})

    @invariant()
    def both_connections_agree_with_the_model(self) -> None:
        ran = sum(row.origin is None for run in self.model.runs for row in run.rows.values())
        usage: dict[Role, RoleUsage] = {}
        for made in self.model.calls:
            usage[made.role] = usage.get(made.role, RoleUsage()) + RoleUsage.of(made)
        for store in (self.store, self.reader):
            assert store.evaluated_examples() == ran
            assert store.lm_usage() == usage
            assert [(turn.code, turn.output) for turn in store.iterations()] == self.model.turns
            unfinished = store.unfinished_iteration()
            assert (None if unfinished is None else unfinished.code) == self.model.begun
            assert store.submission() == self.model.submission
            assert [event.data for event in store.events()] == self.model.events
            assert len(store.runs()) == len(self.model.runs)
            for record, run in zip(store.runs(), self.model.runs, strict=True):
                judged = [row for row in run.rows.values() if row.result.has_verdict]
                assert (record.run_id, record.state, record.answered) == (run.run_id, run.state, run.answered)
                assert (record.judged_count, record.unanswered_count) == (len(judged), run.unanswered)
                assert (record.repeats, record.missing_count) == (run.repeats, len(run.missing))
                assert record.reused_count == sum(row.origin is not None for row in judged)
                shown = {one for one, row in run.rows.items() if row.shows_answers and not row.taken}
                assert store.shown_rollouts(run.run_id) == shown
                by_example = [(one, number) for one in run.planned for number in range(run.repeats)]
                rows = [run.rows[rollout].kept for rollout in by_example if rollout in run.rows]
                assert store.examples(run.run_id) == rows
                self.totals_agree(store, record, run)

    def totals_agree(self, store: StoreReader, record: RunRecord, run: Run) -> None:
        verdicts = run.verdicts
        assert store.scores(run.run_id) == verdicts
        passed = {one for one, scores in verdicts.items() if min(scores) == 1.0}
        assert (record.evaluated_count, record.passed_count) == (len(verdicts), len(passed))
        tried = {example_id for example_id, _ in run.rows}
        failed = tuple(example_id for example_id in run.planned if example_id in tried - passed)
        assert store.failed_ids(run.run_id) == failed
        means = [math.fsum(scores) / len(scores) for scores in verdicts.values()]
        assert record.score == (math.fsum(means) / len(means) if means else None)
        if len(means) < 2:
            assert record.standard_error is None
        else:
            assert record.standard_error == pytest.approx(statistics.stdev(means) / math.sqrt(len(means)))


TestTakeovers = Takeovers.TestCase
TestTakeovers.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
