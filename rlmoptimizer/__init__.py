"""A prompt optimizer for DSPy whose search is an LLM agent at work in its own Jupyter kernel.

Importing this package does not import dspy: `RLMDocstringOptimizer` is loaded when it is first used. A stored result
(`OptimizationResult`) is read without it, and so are events.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rlmoptimizer.errors import (
    AgentError,
    BudgetExceededError,
    CostExceededError,
    CostLimitReached,
    InvalidSetup,
    MetricFailed,
    OptimizerError,
    PromptUpdateError,
    SelectionError,
    StoreCorrupt,
    SubmissionError,
    UnknownRunError,
    WorkersLost,
)

if TYPE_CHECKING:
    from rlmoptimizer.check.report import CheckReport
    from rlmoptimizer.events import (
        AgentSubmitted,
        Branched,
        BudgetCharged,
        CompileFinished,
        CompileResumed,
        CompileStarted,
        EvaluationFinished,
        EvaluationStarted,
        Event,
        ExamplesScored,
        FellBack,
        KernelDied,
        KernelStarted,
        LMUsageCounted,
        NoteGiven,
        PhaseFinished,
        PhaseStarted,
        PromptUpdated,
        StillWaiting,
        StopRequested,
        SubmissionRefused,
        TurnFinished,
        TurnStarted,
        WorkPaused,
        WorkUnpaused,
    )
    from rlmoptimizer.optimizer import RLMDocstringOptimizer
    from rlmoptimizer.outcome.optimization_result import OptimizationResult

__all__ = [
    "AgentError",
    "AgentSubmitted",
    "Branched",
    "BudgetCharged",
    "BudgetExceededError",
    "CheckReport",
    "CompileFinished",
    "CompileResumed",
    "CompileStarted",
    "CostExceededError",
    "CostLimitReached",
    "EvaluationFinished",
    "EvaluationStarted",
    "Event",
    "ExamplesScored",
    "FellBack",
    "InvalidSetup",
    "KernelDied",
    "KernelStarted",
    "LMUsageCounted",
    "MetricFailed",
    "NoteGiven",
    "OptimizationResult",
    "OptimizerError",
    "PhaseFinished",
    "PhaseStarted",
    "PromptUpdateError",
    "PromptUpdated",
    "RLMDocstringOptimizer",
    "SelectionError",
    "StillWaiting",
    "StopRequested",
    "StoreCorrupt",
    "SubmissionError",
    "SubmissionRefused",
    "TurnFinished",
    "TurnStarted",
    "UnknownRunError",
    "WorkPaused",
    "WorkUnpaused",
    "WorkersLost",
]


_LOADED_WHEN_USED = {
    "CheckReport": "rlmoptimizer.check.report",
    "RLMDocstringOptimizer": "rlmoptimizer.optimizer",
    "OptimizationResult": "rlmoptimizer.outcome.optimization_result",
}


def __getattr__(name: str) -> Any:
    if name in __all__:  # the others are events
        return getattr(importlib.import_module(_LOADED_WHEN_USED.get(name, "rlmoptimizer.events")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
