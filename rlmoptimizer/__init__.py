"""A prompt optimizer for DSPy whose search is an LLM agent at work in its own Jupyter kernel."""

from __future__ import annotations

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
