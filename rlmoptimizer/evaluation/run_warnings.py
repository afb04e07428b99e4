"""Warnings to the user about runs that point to a mistake in the setup."""

from __future__ import annotations

import logging

from kernel_bridge.text import printable_line
from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["warn_of_a_dead_baseline", "warn_of_failed_lms"]

logger = logging.getLogger(__name__)

_ERROR_CHARS = 500


def warn_of_a_dead_baseline(store: StoreReader, baseline: RunRecord) -> None:
    """Warn when not one example was scored: a wrong key or a metric without a score looks like bad prompts.

    Only a warning, because answers that cannot be parsed may be the agent's to repair.
    """
    if not baseline.evaluated_count or baseline.error_count < baseline.evaluated_count:
        return
    error = store.examples(baseline.run_id, limit=1)[0].error or ""
    logger.warning(
        "Not one of the %d examples of %s could be scored before anything was changed. The first error: %s. "
        "If that is not the prompts' fault, stop here and look at eval_lm, the data and the metric",
        baseline.evaluated_count,
        baseline.split,
        printable_line(error, _ERROR_CHARS),
    )


def warn_of_failed_lms(store: StoreReader, record: RunRecord) -> None:
    """Warn that an LM failed on examples of a run: the score is that of the others, which looks like a smaller run."""
    error = next((one.error for one in store.examples(record.run_id) if not one.has_verdict), None) or ""
    logger.warning(
        "The LM that runs the program failed on %d of the examples of %s (%s). They have no verdict and are not in "
        "its score. The agent is told, and goes on; this is said once",
        record.unanswered_count,
        record.run_id,
        printable_line(error, _ERROR_CHARS),
    )
