"""The error of a command that was called wrongly."""

from __future__ import annotations

from rlmoptimizer.errors import OptimizerError

__all__ = ["WrongCall"]


class WrongCall(OptimizerError):
    """Arguments that do not fit together. The command ends with exit code 2; the message says what fits."""
