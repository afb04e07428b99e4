"""The setup of one compile: the settings, and what `compile` was given, checked."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dspy

from rlmoptimizer.errors import InvalidSetup, InvalidSetupType
from rlmoptimizer.evaluation.metric import bind_metric
from rlmoptimizer.lms.preflight import check_keys, check_prices
from rlmoptimizer.records import Role
from rlmoptimizer.settings import Settings, an_lm
from rlmoptimizer.task.dataset import Dataset, Row, build_dataset, build_test_rows
from rlmoptimizer.task.program import check_program

__all__ = ["Setup", "eval_lm_given", "metric_given"]

_CONNECTION = frozenset({"api_key", "api_base", "base_url", "headers", "extra_headers"})


@dataclass(frozen=True, slots=True)
class Setup:
    """What is optimized, and how."""

    settings: Settings
    student: dspy.Module
    data: Dataset
    test: tuple[Row, ...] | None  # what only the host scores, at the very end; None: no test set was given
    metric: Callable[..., Any]
    eval_lm: dspy.BaseLM | None  # None: every predictor has an LM of its own

    @classmethod
    def checked(
        cls, settings: Settings, student: Any, trainset: Any, valset: Any, metric: Any, testset: Any = None
    ) -> Setup:
        """Raises `InvalidSetup` for what cannot be worked with, and for LMs without prices where costs are limited.

        `metric` None: that of the settings.
        """
        check_program(student)
        metric = metric_given(settings, metric)
        data = build_dataset(trainset, valset)
        test = None if testset is None else build_test_rows(testset, data)
        setup = cls(settings, student, data, test, metric, eval_lm_given(settings, student))
        setup.check_prices()
        return setup

    def rows(self) -> Iterator[Row]:
        """Of all splits."""
        yield from self.data.train
        yield from self.data.val or ()
        yield from self.test or ()

    def check_prices(self) -> None:
        """Raise `InvalidSetup` for an LM whose calls have no price, where costs are limited."""
        if self.settings.max_cost_usd is not None:
            check_prices(self.lms())

    def check_keys(self) -> None:
        """Raise `InvalidSetup` for an LM that has no key, and for which no predictor brings a connection of its own."""
        check_keys({**self.lms(), "eval": self._eval_lms(connected=False)})

    def lms(self) -> dict[Role, list[dspy.BaseLM]]:
        """The LMs that may be asked, by role; the sub-LM only where it is another than the root LM."""
        sub_lm = self.settings.sub_lm if self.settings.rlm_max_llm_calls else None
        return {
            "root": [self.settings.root_lm],
            "sub": [] if sub_lm is None else [sub_lm],
            "eval": self._eval_lms(),
        }

    def model_names(self) -> dict[str, tuple[str, ...]]:
        """The models that may be asked, by role; the sub-LM only where it is another than the root LM."""
        return {role: tuple(dict.fromkeys(str(lm.model) for lm in lms)) for role, lms in self.lms().items() if lms}

    def _eval_lms(self, *, connected: bool = True) -> list[dspy.BaseLM]:
        """Those of the predictors; without `connected`, only of predictors that have no connection of their own."""
        lms: list[Any] = [
            self.eval_lm if getattr(predictor, "lm", None) is None else predictor.lm
            for predictor in self.student.predictors()
            if connected or not _CONNECTION & set(getattr(predictor, "config", None) or ())
        ]
        return [lm for lm in lms if isinstance(lm, dspy.BaseLM)]


def metric_given(settings: Settings, metric: Any) -> Callable[..., Any]:
    """`metric`, or that of the settings for None. Raises `InvalidSetup` for what cannot be called as one."""
    if metric is None and (metric := settings.metric) is None:
        raise InvalidSetupType(
            "metric is None: pass it to compile(..., metric=...) or to RLMDocstringOptimizer(metric=...)"
        )
    bind_metric(metric)
    return metric


def eval_lm_given(settings: Settings, student: dspy.Module) -> dspy.BaseLM | None:
    """What runs the program; None: every predictor has an LM of its own. Raises `InvalidSetup` when there is none."""
    if settings.eval_lm is not None:
        return settings.eval_lm
    lm: Any = dspy.settings.lm
    if lm is not None:
        return an_lm("dspy.settings.lm", lm)
    predictors = [module for _, module in student.named_sub_modules(dspy.Predict)]
    if all(getattr(predictor, "lm", None) is not None for predictor in predictors):
        return None
    raise InvalidSetup(
        "eval_lm is None and dspy.settings.lm is not set, so nothing can run the program; "
        "pass eval_lm=dspy.LM(...) or call dspy.configure(lm=dspy.LM(...))"
    )
