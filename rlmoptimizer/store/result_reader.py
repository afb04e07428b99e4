"""Reading the results of runs: examples with all they hold, or only their ids, scores and errors."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import Final, cast

from rlmoptimizer.errors import SelectionError
from rlmoptimizer.records import PASSED_AT, ExampleResult, Rollout
from rlmoptimizer.store.results import SHOWN, RolloutScore
from rlmoptimizer.store.rows import RESULT_HEADS, RESULTS, RESULTS_WITHOUT_STEPS
from rlmoptimizer.store.run_reader import RunReader

__all__ = ["ResultReader"]

_PAGE: Final = 50  # examples that are read at once


class ResultReader(RunReader):
    """Reads results. Those of the validation set are stored too: they are for the host only."""

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

    def example_page(
        self, run_id: str, ids: Collection[str] | None, offset: int, limit: int, most_bytes: int
    ) -> list[ExampleResult]:
        """As `examples`, but it ends with the example with which the bytes of all exceed `most_bytes`.

        So it gives at least one, where there is one, and holds no more in memory. Raises `UnknownRunError`.
        """
        return self._results.page(self._number(run_id), ids, offset, limit, most_bytes)

    def result_count(self, run_id: str, ids: Collection[str] | None = None) -> int:
        """How many examples have a result; `ids`: only of these. Raises `UnknownRunError`."""
        return self._results.count(self._number(run_id), ids)

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

    def complete_ids(self, run_id: str) -> frozenset[str]:
        """The ids of the examples all of whose rollouts have a verdict: nothing of them will change any more."""
        return frozenset(self._results.complete_ids(self._number(run_id)))

    def scores(self, run_id: str) -> dict[str, list[float]]:
        """The scores of each example that has a verdict, in planned order, those of one example by rollout.

        Also those that were taken over from other runs. Raises `UnknownRunError`.
        """
        scores: dict[str, list[float]] = {}
        for example_id, _, score in self._results.scores(self._number(run_id)):
            scores.setdefault(example_id, []).append(score)
        return scores

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

    def metric_works(self) -> bool:
        """Whether the metric has ever given an example a score."""
        return self._results.metric_works()

    def evaluated_examples(self) -> int:
        """Rollouts that were run, in all runs together."""
        return self._results.evaluated()
