"""Functions whose annotations name what does not exist. Python can make them from 3.14 on."""

from __future__ import annotations

import sys
from typing import Any

import pytest

__all__ = ["defined", "needs_late_annotations"]

needs_late_annotations = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="until Python 3.13, a def evaluates its annotations at once and fails"
)


def defined(source: str, name: str) -> Any:
    """What `source` defines by that name, without the `from __future__` imports of this file."""
    names: dict[str, Any] = {}
    exec(compile(source, "<annotations>", "exec", dont_inherit=True), names)
    return names[name]
