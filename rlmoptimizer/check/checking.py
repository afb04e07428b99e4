"""A check of what `compile` would be given: everything that can be seen for a few LM calls. Stores and spends nothing.

What cannot be worked with becomes a problem in the report, never an exception.
"""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import dspy

from rlmoptimizer.check.data_sets import budget_found, budget_warnings, data_warnings, splits_found
from rlmoptimizer.check.estimates import cost_messages, estimated
from rlmoptimizer.check.executor import executor_problems
from rlmoptimizer.check.kernel import kernel_found
from rlmoptimizer.check.lms_asked import ask_lms, lm_messages
from rlmoptimizer.check.report import BudgetFound, CheckReport, Estimate, SplitFound, StepFound
from rlmoptimizer.check.trial_run import TrialRun, tried
from rlmoptimizer.compilation.setup import Setup, eval_lm_given, metric_given
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.lms.preflight import check_prices
from rlmoptimizer.records import Role, RoleUsage, usage_dict
from rlmoptimizer.settings import Settings
from rlmoptimizer.task.dataset import build_dataset, build_test_rows
from rlmoptimizer.task.program import check_program, read_prompts

__all__ = ["checked"]

_T = TypeVar("_T")

_EXAMPLES: Final = 3  # of train that are run
_NOT_LOOKED_AT: Final = (
    "steps, examples, metric, data and budget were not looked at: mend the problems of the setup, and check again"
)


def checked(
    settings: Settings, student: Any, trainset: Any, valset: Any, metric: Any, testset: Any
) -> CheckReport:
    """What a compile of these would find."""
    setup, refused = _setup(settings, student, trainset, valset, metric, testset)
    run = None if setup is None else tried(setup, setup.data.train[:_EXAMPLES])
    asked, usage = ask_lms(_lms(settings) if setup is None else setup.lms(), {} if run is None else run.answered)
    kernel = kernel_found(settings.kernel)
    lm_problems, lm_warnings = lm_messages(asked)
    data = None if setup is None or run is None else _data(setup, run)
    parts = [messages for messages in (kernel, run, data) if messages is not None]
    return CheckReport(
        program=type(student).__name__,
        problems=(*refused, *lm_problems, *(text for part in parts for text in part.problems)),
        warnings=(
            *lm_warnings,
            *(text for part in parts for text in part.warnings),
            *([] if setup is not None else [_NOT_LOOKED_AT]),
        ),
        steps=() if setup is None else tuple(_steps(setup)),
        lms=asked,
        examples=() if run is None else run.examples,
        metric=None if run is None else run.metric,
        splits=() if data is None else data.splits,
        budget=None if data is None else data.budget,
        baseline=None if data is None else data.baseline,
        at_most=None if data is None else data.at_most,
        kernel=kernel.found,
        usage=usage_dict(usage if run is None else {**usage, "eval": usage.get("eval", RoleUsage()) + run.usage}),
    )


@dataclass(frozen=True, slots=True)
class _Data:
    """What was found in the data sets and is expected of a compile of them."""

    splits: tuple[SplitFound, ...]
    budget: BudgetFound
    baseline: Estimate | None
    at_most: Estimate | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def _data(setup: Setup, run: TrialRun) -> _Data:
    splits, budget = splits_found(setup.data, setup.test), budget_found(setup.data, setup.settings.iterations)
    first = len(setup.data.train) + len(setup.data.val or ())
    every = first + budget.units + 2 * len(setup.test or ())
    threads = setup.settings.num_threads
    baseline, at_most = (estimated(count, run.examples, run.usage_once, threads) for count in (first, every))
    problems, warnings = cost_messages(setup.settings.max_cost_usd, baseline, at_most)
    found = [*data_warnings(splits), *budget_warnings(setup.data, budget), *warnings]
    return _Data(splits, budget, baseline, at_most, tuple(problems), tuple(found))


def _setup(
    settings: Settings, student: Any, trainset: Any, valset: Any, metric: Any, testset: Any
) -> tuple[Setup | None, list[str]]:
    """What can be run of it, and all that `compile` would refuse one by one. None: nothing can be run.

    Each data set is read once: it may be an iterator.
    """
    problems: list[str] = []
    has_steps = _read(problems, lambda: check_program(student) is None)
    data = _read(problems, lambda: build_dataset(trainset, valset))
    used = _read(problems, lambda: metric_given(settings, metric))
    test = None
    if data is not None and testset is not None:
        test = _read(problems, lambda: build_test_rows(testset, data))
    eval_lm = _read(problems, lambda: (eval_lm_given(settings, student),)) if has_steps else None
    if data is None or used is None or eval_lm is None:
        if settings.max_cost_usd is not None:
            _read(problems, lambda: check_prices(_lms(settings)))
        return None, problems
    setup = Setup(settings, student, data, test, used, *eval_lm)
    _read(problems, setup.check_prices)
    return setup, [*problems, *executor_problems(setup)]


def _read(problems: list[str], read: Callable[[], _T]) -> _T | None:
    """What `read` gives; None, and a problem, where `compile` would refuse it."""
    try:
        return read()
    except InvalidSetup as refused:
        problems.append(str(refused))
        return None


def _lms(settings: Settings) -> Mapping[Role, Sequence[dspy.BaseLM]]:
    """Those that are known without a program."""
    eval_lm: Any = dspy.settings.lm if settings.eval_lm is None else settings.eval_lm
    return {
        "root": [settings.root_lm],
        "sub": [] if settings.sub_lm is None else [settings.sub_lm],
        "eval": [eval_lm] if isinstance(eval_lm, dspy.BaseLM) else [],
    }


def _steps(setup: Setup) -> Iterator[StepFound]:
    predictors: dict[str, Any] = dict(setup.student.named_predictors())
    for name, prompt in read_prompts(setup.student).items():
        own = getattr(predictors.get(name), "lm", None)
        model = getattr(setup.eval_lm if own is None else own, "model", None)
        yield StepFound(name, len(prompt), model if isinstance(model, str) else None)
