"""A prompt optimizer for DSPy whose search is an LLM agent at work in its own Jupyter kernel.

Importing this package does not import dspy: `RLMDocstringOptimizer` is loaded when it is first used.
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

__all__ = [
    "AgentError",
    "BudgetExceededError",
    "CostExceededError",
    "CostLimitReached",
    "InvalidSetup",
    "MetricFailed",
    "OptimizerError",
    "PromptUpdateError",
    "RLMDocstringOptimizer",
    "SelectionError",
    "StoreCorrupt",
    "SubmissionError",
    "UnknownRunError",
]


def __getattr__(name: str) -> Any:
    if name == "RLMDocstringOptimizer":
        return importlib.import_module("rlmoptimizer.optimizer").RLMDocstringOptimizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
