"""A prompt optimizer for DSPy whose search is an LLM agent at work in its own Jupyter kernel.

Importing this package does not import dspy: `RLMDocstringOptimizer` is loaded when it is first used. A stored result
(`OptimizationResult`) is read without it.
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
)

if TYPE_CHECKING:
    from rlmoptimizer.optimizer import RLMDocstringOptimizer
    from rlmoptimizer.outcome.optimization_result import OptimizationResult

__all__ = [
    "AgentError",
    "BudgetExceededError",
    "CostExceededError",
    "CostLimitReached",
    "InvalidSetup",
    "MetricFailed",
    "OptimizationResult",
    "OptimizerError",
    "PromptUpdateError",
    "RLMDocstringOptimizer",
    "SelectionError",
    "StoreCorrupt",
    "SubmissionError",
    "UnknownRunError",
]


_LOADED_WHEN_USED = {
    "RLMDocstringOptimizer": "rlmoptimizer.optimizer",
    "OptimizationResult": "rlmoptimizer.outcome.optimization_result",
}


def __getattr__(name: str) -> Any:
    if name in _LOADED_WHEN_USED:
        return getattr(importlib.import_module(_LOADED_WHEN_USED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
