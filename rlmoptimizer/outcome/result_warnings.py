"""What a person must know before relying on a result. Nothing of an example is quoted. Imports no DSPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rlmoptimizer.outcome.recorded_setup import SPLITS, digests_of, split_sizes
from rlmoptimizer.records import LM_FAILURES, METRIC_ERRORS, RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["STRAYS_SEEN", "result_warnings", "shared_examples"]

STRAYS_SEEN: Final = "StraysSeen"  # an event of the store: steps were called where DSPy's settings do not reach


def result_warnings(
    store: StoreReader, setup: Mapping[str, Any], runs: Sequence[RunRecord], test_problem: str | None
) -> list[str]:
    """One sentence each; `runs` are those behind the figures on val and test."""
    found = [] if test_problem is None else [f"the test set was not measured: {test_problem}"]
    for run in {run.run_id: run for run in runs}.values():  # one run is of both programs where nothing changed
        program = "the unchanged program" if run.baseline else "the new program"
        where = f"{program} on {run.split} (run {run.run_id})"
        kinds = store.error_kinds(run.run_id)
        failures = {kind: count for kind, count in sorted(kinds.items()) if kind in LM_FAILURES}
        if failures:
            counts = ", ".join(f"{kind}: {count}" for kind, count in failures.items())
            failed = _examples(sum(failures.values()))
            found.append(f"an LM failed on {failed} of {where}, which are left out ({counts})")
        if errors := sum(kinds.get(kind, 0) for kind in METRIC_ERRORS):
            found.append(f"the metric gave no score on {_examples(errors)} of {where}, which count as 0")
    if store.events(STRAYS_SEEN):
        found.append(
            "the program calls steps in threads of its own without DSPy's settings: another LM than eval_lm answered "
            "those calls, and what they cost is not counted"
        )
    return found + shared_examples(setup)


def shared_examples(setup: Mapping[str, Any]) -> list[str]:
    """A sentence for each two splits that share examples: what is in two of them proves less than it seems to."""
    sizes = split_sizes(setup)
    found: list[str] = []
    for place, split in enumerate(SPLITS):
        for other in SPLITS[:place]:
            known = set(digests_of(setup, other))
            if shared := sum(digest in known for digest in digests_of(setup, split)):
                found.append(f"{shared} of the {sizes[split]} examples of {split} are in {other} too")
    return found


def _examples(count: int) -> str:
    return f"{count} example{'' if count == 1 else 's'}"
