"""Modules of DSPy that a later release drops. Tests of them skip themselves then."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

__all__ = ["DROPPED_IN_3_5", "module_or_skip"]

DROPPED_IN_3_5 = ("CodeAct", "ProgramOfThought")


def module_or_skip(name: str) -> Any:
    """`dspy.NAME`. Skips the test where this DSPy has none."""
    if not hasattr(dspy, name):
        pytest.skip(f"DSPy {dspy.__version__} has no dspy.{name}; 3.5 drops it")
    return getattr(dspy, name)
