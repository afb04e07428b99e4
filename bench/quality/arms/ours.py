"""This optimizer. Its baseline costs metric calls too, so its own budget is what these leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quality.arms.job import Job, Outcome
from rlmoptimizer import RLMDocstringOptimizer

__all__ = ["Plan", "ours", "plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """`max_iterations` and the rows that are used, the first ones of each split."""

    iterations: int
    train: int
    val: int

    @property
    def metric_calls(self) -> int:
        """At most: the baseline on train and val, and one for each unit of the budget."""
        return self.train + self.val + self.units

    @property
    def units(self) -> int:
        return self.iterations * self.train + self.val


def plan(budget: int, train: int, val: int) -> Plan:
    """The plan that uses most of `budget` metric calls. Val is at most an eighth of it: it is paid at least twice, at
    the baseline and for what the agent submits, and what goes there is not searched with.

    The budget of a compile is a multiple of the train rows and the val rows once. With n iterations on t and v rows all
    comes to (n + 1) * t + 2 * v metric calls. Where that does not fit exactly, some train rows are left out.
    """
    if budget < 8:
        raise ValueError(f"a budget of {budget} metric calls is too small for the arm ours; give it 8 or more")
    rows_val = max(1, min(val, budget // 8))
    left = budget - 2 * rows_val
    rounds = max(2, -(-left // train))
    return Plan(iterations=rounds - 1, train=min(train, left // rounds), val=rows_val)


def ours(job: Job) -> Outcome:
    task = job.task
    planned = plan(job.budget, len(task.train), len(task.val))
    store = job.directory / "store"
    optimizer = RLMDocstringOptimizer(
        **{
            "root_lm": job.lm("root"),
            "sub_lm": job.lm("sub"),
            "eval_lm": job.lm("eval"),
            "max_iterations": planned.iterations,
            "num_threads": job.threads,
            "run_storage_dir": store,
            "seed": job.seed,
            **job.ours,
        }
    )
    program: Any = optimizer.compile(
        task.program,
        trainset=task.train[: planned.train],
        valset=task.val[: planned.val],
        metric=job.metric,
        resume=store.exists(),
    )
    notes: dict[str, Any] = {
        "train_rows": planned.train,
        "val_rows": planned.val,
        "units": planned.units,
        "turns": len(program.agent_trajectory),
        "runs": len(program.trial_logs),
    }
    result = getattr(program, "optimization_result", None)
    if result is not None:
        notes["optimization_result"] = result.to_dict()
    return Outcome(program, notes)
