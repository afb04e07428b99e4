"""The curve of the best score so far: read as the runs end it is the one that is read at the end."""

from __future__ import annotations

from pathlib import Path

from stored_optimization import AFTER, BEFORE, add_run, setup_of
from stored_runs import result

from rlmoptimizer.outcome.best_so_far import BestSoFar, UnitsSpent, best_so_far
from rlmoptimizer.store.run_store import RunStore

OTHER = {**BEFORE, "reply": "Answer in a friendly way."}


def test_it_falls_when_a_lucky_candidate_runs_again_and_leaves_out_parts_of_the_split(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(1, 4))
        spent = UnitsSpent(store)
        curve = BestSoFar(store, "val", 4, spent)

        def points() -> list[tuple[str, int, float, float]]:
            spent.update()
            found = curve.checkpoints(store.runs())
            assert found == best_so_far(store, store.runs(), "val", 4, UnitsSpent(store))
            return [(one.run_id, one.spent, one.score, one.best) for one in found]

        assert points() == []
        add_run(store, "val", [1, 0, 0, 0], BEFORE, baseline=True)
        add_run(store, "val", [1, 1, 1, 1], AFTER)
        add_run(store, "val", [1, 1, 0, 0], OTHER)
        add_run(store, "val", [1, 1], OTHER)
        add_run(store, "train", [1], OTHER)
        assert points() == [("r1", 0, 25, 25), ("r2", 4, 100, 100), ("r3", 8, 50, 100)]
        unserved = result("3", 0.0, error="no answer", error_kind="timeout")
        cut = add_run(store, "val", [result("0", 0.0), result("1", 0.0), result("2", 0.0), unserved], AFTER)
        assert len(points()) == 3  # no score on one example
        store.reopen_run(cut)
        store.append(cut, result("3", 0.0))
        store.finish_run(cut)
        assert points()[-1] == (cut, 15, 0, 50)
