"""What a person must know before relying on a result. Nothing of an example is quoted. Imports no DSPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rlmoptimizer.outcome.recorded_setup import SPLITS, digests_of, split_sizes
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import LM_FAILURES, METRIC_ERRORS, RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["STRAYS_SEEN", "data_set_warnings", "result_warnings"]

STRAYS_SEEN: Final = "StraysSeen"  # an event of the store: steps were called where DSPy's settings do not reach


def result_warnings(
    store: StoreReader, setup: Mapping[str, Any], runs: Sequence[RunRecord], test_problem: str | None
) -> list[str]:
    """One sentence each; `runs` are those behind the figures on val and test."""
    unchanged = Prompts.of(setup["student"]["steps"]).digest
    found = [] if test_problem is None else [f"the test set was not measured: {test_problem}"]
    for run in {run.run_id: run for run in runs}.values():  # one run is of both programs where nothing changed
        program = "the unchanged program" if run.candidate == unchanged else "the new program"
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
    return found + data_set_warnings(setup)


def data_set_warnings(setup: Mapping[str, Any]) -> list[str]:
    """A sentence for each two splits that share examples, and for each that holds some twice.

    What is in two splits proves less than it seems to; what is in one twice is paid twice and tells nothing new.
    """
    sizes = split_sizes(setup)
    found: list[str] = []
    for place, split in enumerate(SPLITS):
        digests = digests_of(setup, split)
        if repeated := len(digests) - len(set(digests)):
            found.append(f"{repeated} of the {_examples(sizes[split])} of {split} {_stand(repeated)} in it before")
        for other in SPLITS[:place]:
            known = set(digests_of(setup, other))
            if shared := sum(digest in known for digest in digests):
                found.append(f"{shared} of the {sizes[split]} examples of {split} are in {other} too")
    return found


def _stand(count: int) -> str:
    return "stands" if count == 1 else "stand"


def _examples(count: int) -> str:
    return f"{count} example{'' if count == 1 else 's'}"
