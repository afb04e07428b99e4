"""The result of an optimization: what came back, how much better it is, and how sure that is.

All of it is read from the run store, so a finished optimization gives the same again. Imports no DSPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from kernel_bridge.text import printable_line
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.outcome.best_so_far import Checkpoint, UnitsSpent, best_so_far
from rlmoptimizer.outcome.constant_answers import constant_answers
from rlmoptimizer.outcome.ending import AgentOutcome, Choice, Outcome
from rlmoptimizer.outcome.example_table import pack_rows, table_rows, unpack_rows
from rlmoptimizer.outcome.hygiene import Hygiene, check_hygiene
from rlmoptimizer.outcome.measured import MeasuredCandidates, measured_scores
from rlmoptimizer.outcome.phases import phase_seconds
from rlmoptimizer.outcome.recorded_setup import branch_in, split_sizes, unit_limit
from rlmoptimizer.outcome.result_html import result_html
from rlmoptimizer.outcome.result_warnings import result_warnings
from rlmoptimizer.outcome.split_result import SplitResult, Verdict
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.text import brief, count_text

__all__ = ["OptimizationResult"]

_LINE_CHARS = 1000


@dataclass(frozen=True, slots=True, repr=False)
class OptimizationResult:
    """What an optimization came to. Scores are 0 to 100, differences are in points of them, times are seconds.

    A notebook shows it with its figures, the curve of the best score, and the new prompts.
    """

    verdict: Verdict
    verdict_split: str | None  # that it is from: "test", or "val" without one; None: there is neither
    verdict_text: str
    splits: dict[str, SplitResult]  # of "train", "val" and "test" those that there are and that were measured
    val_checkpoints: int  # finished runs on val besides the baseline's: how often val was looked at
    prompts_before: dict[str, str]  # by step
    prompts_after: dict[str, str]
    submitted: dict[str, str] | None  # by the agent; None: nothing valid
    returned_run: str | None  # the run that `prompts_after` are taken from; None: they are the submission
    returned_because: str
    candidates: tuple[dict[str, str], ...]  # every map of prompts that was evaluated or set; the unchanged one first
    parents: tuple[int | None, ...]  # indexes: the candidate that was set when this one came up; None: the first
    val_scores: tuple[float | None, ...]  # on the whole of `scored_split`; None: not measured there
    scored_split: str  # "val", or "train" without a validation set
    best_index: int | None  # the candidate with the best of `val_scores`, the first of equals
    best_so_far: tuple[Checkpoint, ...]  # the curve: every run on the whole of `scored_split`
    stop_reason: str  # why the agent's work ended: "submitted", "turns", "max_cost_usd", ...
    turns: int  # of the agent
    budget: dict[str, int]  # "limit" and "spent", in units
    usage: dict[str, dict[str, Any]]  # of the LM calls, by role
    cost_usd: float | None  # of all of them; None: a price is not known
    seconds: dict[str, float]  # by phase: "baseline", "agent", "final_check", "test"
    run_ids: dict[str, dict[str, tuple[str, ...]]]  # split -> "baseline" and "result" -> the runs behind its figures
    hygiene: Hygiene  # what is suspicious in `prompts_after`: text copied from train, labels named, growth
    warnings: tuple[str, ...]
    branched_from: dict[str, str] | None  # "store" (the name of its file) and "run_id"; None: it is no branch
    versions: dict[str, str]  # "python", "dspy", "rlmoptimizer", "os"
    store_path: str | None  # of the run store; None: it was temporary
    packed_examples: bytes | None = field(compare=False)  # see `examples`; None: in the store, or too large

    @classmethod
    def of(cls, store: StoreReader, *, temporary: bool = False) -> OptimizationResult:
        """Read the result of a finished optimization. `temporary`: the store is about to be removed.

        Raises `InvalidSetup` when the optimization has not ended.
        """
        setup, agent, choice, outcome = store.setup(), AgentOutcome.of(store), Choice.of(store), Outcome.of(store)
        if setup is None or agent is None or choice is None or outcome is None:
            raise InvalidSetup(f"the optimization in {store.path} has not ended; resume it to have its result")
        before, after = Prompts.of(setup["student"]["steps"]), Prompts.of(choice.prompts)
        sizes, runs = split_sizes(setup), store.runs()
        if outcome.test_problem is not None:
            del sizes["test"]
        splits = {split: _split_result(store, split, before, after, size) for split, size in sizes.items()}
        behind = {split: _runs_behind(runs, split, before, after) for split in sizes}
        looked = [run for run in runs if run.split == "val" and not run.baseline and run.state == "finished"]
        # The final check, which is of no turn, came after the prompts were chosen.
        choosing = sum(run.turn > 0 for run in looked)
        verdict, verdict_split, text = _verdict(splits, choosing, choice, outcome.test_problem)
        candidates = MeasuredCandidates.of(store, before, sizes)
        spent = UnitsSpent(store)
        train_run = next(run.run_id for run in behind["train"]["baseline"] if run.baseline)
        hygiene = check_hygiene(before, after, store.each_example(train_run, steps=False))
        held_out = [run for split in ("val", "test") for of in behind.get(split, {}).values() for run in of]
        return cls(
            verdict=verdict,
            verdict_split=verdict_split,
            verdict_text=text,
            splits=splits,
            val_checkpoints=len(looked),
            prompts_before=dict(before),
            prompts_after=dict(after),
            submitted=agent.prompts,
            returned_run=choice.run_id,
            returned_because=choice.because,
            candidates=candidates.prompts,
            parents=candidates.parents,
            val_scores=candidates.scores,
            scored_split=candidates.split,
            best_index=candidates.best,
            best_so_far=best_so_far(store, runs, candidates.split, sizes[candidates.split], spent),
            stop_reason=agent.stop_reason,
            turns=len(store.iterations()),
            budget={"limit": unit_limit(setup), "spent": spent.in_all},
            usage=outcome.usage,
            cost_usd=outcome.cost_usd,
            seconds=phase_seconds(store.events()),
            run_ids={
                split: {whose: tuple(run.run_id for run in of) for whose, of in both.items()}
                for split, both in behind.items()
            },
            hygiene=hygiene,
            warnings=(
                *result_warnings(store, setup, held_out, outcome.test_problem),
                *hygiene.warnings,
                *_constant_answers(store, behind["train"]["result"], "unchanged" if after == before else "new"),
            ),
            branched_from=_branched_from(setup),
            versions=outcome.versions,
            store_path=None if temporary else str(store.path),
            packed_examples=pack_rows(table_rows(store, before, after)) if temporary else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it but the examples, as JSON holds it."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "packed_examples"}
        plain["splits"] = {split: found.to_dict() for split, found in self.splits.items()}
        plain["best_so_far"] = [asdict(checkpoint) for checkpoint in self.best_so_far]
        return _plain({**plain, "hygiene": self.hygiene.as_dict()})

    def examples(self, split: str = "train") -> list[dict[str, Any]]:
        """The examples of train under the old and the new prompts: flat dicts, as `pandas.DataFrame` takes them.

        The keys are "example_id", "source_example_id", "baseline.score", "baseline.passed", "baseline.error",
        "baseline.feedback", the same of "result", and where there are such fields "inputs.<field>",
        "expected.<field>", "baseline.predicted.<field>" and "result.predicted.<field>". Scores are 0 to 100, the mean
        of all runs; the rest is of the newest run. None: not run, or nothing to tell.

        They are read from the run store at `store_path`. Where that was temporary, the result holds them itself,
        packed, as long as that takes no more than 32 MB.

        Raises:
            InvalidSetup: the examples of val and test are not shown; the store is gone from its place; or there was
                none, and the examples are too large to be held.
            StoreCorrupt: the store cannot be read.
        """
        if split != "train":
            raise InvalidSetup(
                f"only examples of 'train' are shown, got {brief(split)}; `splits` has totals of the others"
            )
        if self.packed_examples is not None:
            return unpack_rows(self.packed_examples)
        if self.store_path is None:
            raise InvalidSetup("the examples take more than 32 MB; to have them, give the optimizer a run_storage_dir")
        with StoreReader.open(self.store_path) as store:
            return list(table_rows(store, self.prompts_before, self.prompts_after))

    @property
    def heading(self) -> str:
        """`verdict_text` without the figures of the splits."""
        text = self.verdict_text
        for found in self.splits.values():
            text = text.replace(f": {found.text}", "").replace(f" ({found.text})", "")
        return text

    def summary(self) -> str:
        """A few lines for people."""
        lines = [self.heading]
        lines += [f"{split}: {found.text}" for split, found in self.splits.items()]
        spent = f"{self.budget['spent']} of {self.budget['limit']} units in {count_text(self.turns, 'turn')}"
        lines.append(f"returned: {self.returned_because}")
        lines.append(f"the agent's work ended with {self.stop_reason!r}, after {spent}")
        if self.branched_from is not None:
            lines.append(f"branched from run {self.branched_from['run_id']} of {self.branched_from['store']}")
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(printable_line(line, _LINE_CHARS) for line in lines)  # what the agent wrote is in some

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"<OptimizationResult: {printable_line(self.verdict_text)}>"

    def _repr_html_(self) -> str:
        return result_html(self)


def _split_result(store: StoreReader, split: str, before: Prompts, after: Prompts, examples: int) -> SplitResult:
    measured = measured_scores(store, split)
    return SplitResult.of(measured.get(before.digest, {}), measured.get(after.digest, {}), examples)


def _runs_behind(runs: Sequence[RunRecord], split: str, before: Prompts, after: Prompts) -> dict[str, list[RunRecord]]:
    """The runs from which the figures of both programs on a split come."""
    states = ("finished", "cancelled") if split == "train" else ("finished",)
    of_split = [run for run in runs if run.split == split and run.state in states]
    return {
        "baseline": [run for run in of_split if run.candidate == before.digest],
        "result": [run for run in of_split if run.candidate == after.digest],
    }


def _verdict(
    splits: Mapping[str, SplitResult], looks: int, choice: Choice, test_problem: str | None
) -> tuple[Verdict, str | None, str]:
    """From test where it was measured, else from val; with the split and the text."""
    not_tested = "" if test_problem is None else f"; the test set was not measured: {test_problem}"
    if "test" in splits:
        found = splits["test"]
        return found.verdict, "test", f"{found.verdict} on test: {found.text}"
    if "val" in splits:
        found = splits["val"]
        looked = ""
        if looks:
            times = "once" if looks == 1 else f"{looks} times"
            looked = f"; val was looked at {times} while prompts were chosen"
            if found.difference is not None and found.difference > 0:
                looked += ", so the true gain may be smaller"
        said = found.text if found.n else choice.because  # which says why val was not measured
        return found.verdict, "val", f"{found.verdict} on val: {said}{looked}{not_tested}"
    text = "there is neither a validation set nor a test set, and scores on train prove nothing"
    return "no proven gain", None, f"no proven gain: {text} ({splits['train'].text}){not_tested}"


def _branched_from(setup: Mapping[str, Any]) -> dict[str, str] | None:
    branch = branch_in(setup)
    return None if branch is None else {"store": branch["store"], "run_id": branch["run_id"]}


def _constant_answers(store: StoreReader, runs: Sequence[RunRecord], which: str) -> Iterator[str]:
    """A sentence for each output that is nearly always the same in the largest of these runs on train."""
    largest = max(runs, key=lambda run: run.evaluated_count, default=None)
    if largest is not None:
        for said in constant_answers(store.each_example(largest.run_id, steps=False)):
            yield f"the {which} program answers nearly everything the same: {said} (run {largest.run_id} on train)"


def _plain(value: Any) -> Any:
    """With lists in the place of tuples."""
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in cast("Sequence[Any]", value)]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in cast("dict[str, Any]", value).items()}
    return value
