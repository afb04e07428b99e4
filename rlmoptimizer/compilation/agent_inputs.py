"""What the agent is given at its start: the variables of its session."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from kernel_bridge.text import printable
from rlmoptimizer.agent.baseline_evidence import STRAYS, read_baseline
from rlmoptimizer.agent.source_text import metric_source, program_source
from rlmoptimizer.agent.task_facts import describe_steps, describe_task
from rlmoptimizer.agent.workbench import Workbench
from rlmoptimizer.compilation.resume import EarlierWork, branch_text
from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.events import Split
from rlmoptimizer.outcome import run_totals as answers
from rlmoptimizer.outcome.recorded_setup import branch_in
from rlmoptimizer.outcome.result_warnings import STRAYS_SEEN
from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.run_store import RunStore

__all__ = ["agent_inputs", "note_strays"]

logger = logging.getLogger(__name__)


def agent_inputs(
    setup: Setup,
    bench: Workbench,
    past: EarlierWork,
    baselines: Mapping[Split, RunRecord],
    *,
    namespace: str,
    strays: bool,
) -> dict[str, Any]:
    """The inputs of the agent.

    `namespace`: a sentence on what its REPL holds. `strays`: steps have been called in this process where DSPy's
    settings do not reach. A new agent's warnings are logged, for the person. Raises `StoreCorrupt`.
    """
    settings, accounts = setup.settings, bench.accounts
    evidence = read_baseline(
        accounts.store,
        baselines["train"].run_id if "train" in baselines else None,
        bench.prompts.steps,
        strays=note_strays(accounts.store, seen=strays),
    )
    warnings = list(evidence.warnings)
    sources: dict[str, str] = {}
    if settings.share_source:
        found = {"program_source": program_source(setup.student), "metric_source": metric_source(setup.metric)}
        warnings += [f"{name} is empty: {source.problem}" for name, source in found.items() if source.problem]
        sources = {name: source.text for name, source in found.items()}
    if not past.turns:
        for warning in warnings:
            if warning != STRAYS:  # the evaluator has told of them
                logger.warning("The agent is told: %s", printable(warning))
    names = answers.objective_names(baselines.values())
    return {
        "program_steps": describe_steps(setup.student, setup.eval_lm, evidence.requests),
        "baseline_runs": {
            split: answers.run_totals(baselines[split], names) if split in baselines else None
            for split in ("train", "val")
        },
        "task_facts": describe_task(
            setup.student, setup.metric, setup.data, settings, budget=accounts.ledger.limit, warnings=warnings
        )
        | bench.stop.facts(),
        **sources,
        "previous_trajectory": past.trajectory(),
        "work_so_far": "\n".join(_work_so_far(setup, bench, past, namespace)),
    }


def _work_so_far(setup: Setup, bench: Workbench, past: EarlierWork, namespace: str) -> Iterator[str]:
    branch, left = branch_in(bench.accounts.store.setup()), bench.accounts.ledger.left
    if branch is not None:
        yield branch_text(branch, past.runs)
    if past.turns:
        yield past.summary(max_turns=setup.settings.rlm_max_iterations, budget_left=left, namespace=namespace)


def note_strays(store: RunStore, *, seen: bool) -> bool:
    """Whether calls without DSPy's settings were seen, in this process or in one before it. The store keeps it."""
    known = bool(store.events(STRAYS_SEEN))
    if seen and not known:
        store.record_event(STRAYS_SEEN, {})
    return seen or known
