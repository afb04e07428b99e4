"""Doubts: what the baseline says about the set-up, told to the person who pays. Knows a finished run, no agent."""

from __future__ import annotations

import logging

from kernel_bridge.shown import printable

from .run_store import RunRecord, RunStore

__all__ = ["warn_of_a_dead_baseline"]

logger = logging.getLogger(__name__)

_ERROR_CHARS = 500


def warn_of_a_dead_baseline(store: RunStore, baseline: RunRecord) -> None:
    """Warn when not one example of a run was scored: a wrong key or a metric without a score looks like bad prompts.

    It is a warning and no more, because mending answers that cannot be parsed is work for the agent.
    """
    if not baseline.evaluated_count or baseline.error_count < baseline.evaluated_count:
        return
    error = store.examples(baseline.run_id, limit=1)[0].error or ""
    logger.warning(
        "Not one of the %d examples of %s could be scored before anything was changed. The first error: %s. "
        "If that is not the prompts' fault, stop here and look at eval_lm, the data and the metric",
        baseline.evaluated_count,
        baseline.split,
        printable(error, _ERROR_CHARS),
    )
