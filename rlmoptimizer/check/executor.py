"""A look at the executor: whether its workers can run the program. It spends nothing, and the examples run here."""

from __future__ import annotations

from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.metric import bind_metric

__all__ = ["executor_problems"]


def executor_problems(setup: Setup) -> list[str]:
    """Why `compile` would refuse to work on the executor of the settings; []: it would not."""
    settings = setup.settings
    scorer = bind_metric(setup.metric, settings.perfect_score)
    with Evaluator(scorer, setup.eval_lm, settings.num_threads, executor=settings.executor) as evaluator:
        try:
            evaluator.prepare(setup.student, setup.rows())
        except InvalidSetup as refused:
            return [str(refused)]
    return []
