"""The inputs of a sub-agent: plain values, copied, with all texts cleaned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, cast

from kernel_bridge.errors import SubAgentError

__all__ = ["MOST_CALL_VALUES", "plain_input", "value_count"]

MOST_CALL_VALUES: Final = 100_000  # in the inputs of one call, those within lists and dicts counted
_MOST_DIGITS: Final = 4300  # of a whole number; Python prints no longer one


def plain_input(path: str, value: Any, text: Callable[[str], str]) -> Any:
    """A copy of a value whose texts have gone through `text`. Raises: SubAgentError when it is no plain value."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        if value.bit_length() > _MOST_DIGITS * math.log2(10):
            raise SubAgentError(f"{path} is a whole number of more than {_MOST_DIGITS} digits")
        return value
    if isinstance(value, list):
        return [plain_input(path, item, text) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {text(key): plain_input(path, item, text) for key, item in items}
    raise SubAgentError(f"{path} holds {type(value).__name__}; inputs are text, numbers, bool, None, lists and dicts")


def value_count(value: Any) -> int:
    """How many values there are in one, those within lists and dicts counted."""
    if isinstance(value, dict):
        value = list(cast("dict[str, Any]", value).values())
    return 1 + sum(map(value_count, cast("list[Any]", value))) if isinstance(value, list) else 1
