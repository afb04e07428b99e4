"""What a compile runs on, for the record."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import platform
from importlib import metadata

import dspy

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Versions of "python", "dspy", "rlmoptimizer" and "os"."""
    try:
        own = metadata.version("rlmoptimizer")
    except metadata.PackageNotFoundError:  # used from a copy that is not installed
        own = "unknown"
    return {
        "python": platform.python_version(),
        "dspy": str(dspy.__version__),
        "rlmoptimizer": own,
        "os": platform.platform(),
    }
