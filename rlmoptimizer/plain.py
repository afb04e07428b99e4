"""Plain values: what may cross to the agent and into the store. Knows no sockets and no tables.

Plain are None, bool, int, float, str, bytes, lists of plain values and dicts from str to plain values.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MAX_DEPTH", "to_plain"]

MAX_DEPTH = 32  # nesting levels kept; the tool channel takes 64 and a result stands some levels deep in an answer


def to_plain(value: Any) -> Any:
    """A plain copy of any value; never raises.

    DSPy's records, pydantic models, dataclasses, named tuples and mappings become dicts; sequences and sets lists;
    enums their value; numpy scalars and arrays numbers and lists; everything else its `str`. Cycles are cut.
    """
    raise NotImplementedError
