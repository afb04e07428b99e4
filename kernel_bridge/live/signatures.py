"""The signature of a function, read alike on every Python."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["call_signature"]


def call_signature(function: Callable[..., Any]) -> inspect.Signature:
    """`inspect.signature`, also of a function whose annotations cannot be evaluated: they stay text then.

    From Python 3.14 on, annotations are evaluated when they are first read, and those that name what is imported for
    type checkers only raise NameError. Raises: TypeError, ValueError: it has no signature.
    """
    try:
        return inspect.signature(function)
    except NameError:
        if sys.version_info < (3, 14):
            raise
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.STRING)
