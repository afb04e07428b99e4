"""The events with which a compile begins and ends."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

from rlmoptimizer.agent.workbench import Workbench
from rlmoptimizer.compilation.resume import EarlierWork
from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.compilation.setup_record import metric_name
from rlmoptimizer.events import Branched, CompileFinished, CompileResumed, CompileStarted
from rlmoptimizer.outcome.measured import whole_scores
from rlmoptimizer.outcome.optimization_result import OptimizationResult
from rlmoptimizer.outcome.recorded_setup import branch_in
from rlmoptimizer.prompts import changed_steps

__all__ = ["emit_begin", "emit_end"]


def emit_begin(setup: Setup, bench: Workbench, past: EarlierWork) -> None:
    """What begins, or goes on after `past`."""
    accounts, data = bench.accounts, setup.data
    accounts.emitter.emit(
        CompileStarted(
            bench.prompts.steps,
            len(data.train),
            len(data.val or ()),
            accounts.ledger.limit,
            test_count=len(setup.test or ()),
            models=setup.model_names(),
            metric=metric_name(setup.metric),
            max_cost_usd=setup.settings.max_cost_usd,
            store=str(accounts.store.path),
            is_kept=setup.settings.run_storage_dir is not None,
            prompts=dict(bench.prompts.original),
            executor=_executor_name(setup.settings.executor),
        )
    )
    branch = branch_in(accounts.store.setup())
    if branch is not None and not accounts.store.events("Branched"):
        accounts.emitter.emit(Branched(branch["store"], branch["run_id"]))
    elif past.runs:
        best = _best_run(setup, past)
        accounts.emitter.emit(CompileResumed(len(past.turns), len(past.runs), accounts.ledger.left, best))


def _executor_name(executor: Any) -> str:
    """`CompileStarted.executor`."""
    if executor is None:
        return ""
    return type(executor).__name__ if isinstance(executor, Executor) else f"made by {metric_name(executor)}"


def emit_end(setup: Setup, bench: Workbench, result: OptimizationResult) -> None:
    """What came of it."""
    accounts = bench.accounts
    (split, rows), runs = setup.data.scored, accounts.store.runs()
    scores = whole_scores(accounts.store, split, len(rows))
    accounts.emitter.emit(
        CompileFinished(
            baseline_score=next(
                run.score for run in runs if run.baseline and run.split == split and run.state == "finished"
            ),
            best_score=max(scores.values(), default=None),
            spent=accounts.ledger.spent,
            turns=bench.turns.count,
            usage=result.usage,
            verdict=result.verdict_text,
            splits={name: found.to_dict() for name, found in result.splits.items()},
            prompts_changed=tuple(changed_steps(result.prompts_after, result.prompts_before)),
            seconds=result.seconds,
        )
    )


def _best_run(setup: Setup, past: EarlierWork) -> tuple[float, str] | None:
    """Its score and its id, of those on the whole of the scored split that earlier processes have ended."""
    split, rows = setup.data.scored
    scores = {run.run_id: run.score for run in past.runs if run.covers(split, len(rows)) and run.score is not None}
    best = max(scores, key=scores.__getitem__, default=None)
    return None if best is None else (scores[best], best)
