"""The inputs that the agent gives to `try_program`, checked before the program gets them.

They are texts and numbers of a hostile author. DSPy would resolve some of them on the host: a text with its mark of
attachments, and what comes under the names by which `dspy.Predict` takes its settings.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final, cast

import dspy

from rlmoptimizer.errors import InputsError
from rlmoptimizer.lms.attachment_marks import has_attachments
from rlmoptimizer.task.dataset import Row
from rlmoptimizer.text import brief

__all__ = ["TrialInputs"]

MOST_CHARS: Final = 1_000_000  # of all texts together
_MOST_VALUES: Final = 10_000  # items of lists and dicts, at all levels
_DEEPEST: Final = 32
_MOST_BITS: Final = 14_000  # of a whole number: Python prints no more than 4300 digits
_LOOKED_AT: Final = 100  # rows whose values are looked into
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes, list, dict})

# What `dspy.Predict` takes for its own, whatever the fields of its signature are: a signature would be parsed, which
# imports types, and a config is handed to the LM's client.
_SETTINGS: Final = frozenset({"signature", "new_signature", "demos", "config", "lm", "prediction"})


class TrialInputs:
    """What inputs the program takes, going by the rows of train."""

    def __init__(self, rows: tuple[Row, ...]) -> None:
        self._rows = rows

    def checked(self, given: Any) -> dict[str, Any]:
        """`given` as the program's keyword arguments. Raises `InputsError`, which says what is accepted."""
        if not isinstance(given, Mapping):
            raise InputsError(f"inputs must be a dict {{name: value}}, got {type(given).__name__}; {self._accepted}")
        inputs = cast("Mapping[Any, Any]", given)
        if frozenset(inputs) not in self._names:
            names = ", ".join(brief(name) for name in list(inputs)[:20]) or "nothing"
            raise InputsError(f"got inputs named {names}; {self._accepted}")
        if reason := self._never:
            raise InputsError(reason)
        _Reader().read(inputs, "inputs", 0)
        return dict(inputs)

    @functools.cached_property
    def _names(self) -> frozenset[frozenset[str]]:
        """The sets of names that rows have: almost always one."""
        return frozenset(frozenset(_inputs(row)) for row in self._rows)

    @property
    def _accepted(self) -> str:
        forms = sorted(", ".join(sorted(names)) for names in self._names)
        return f"the program's inputs are {' or '.join(forms[:5])}"

    @functools.cached_property
    def _never(self) -> str | None:
        """Why this program cannot be tried on anything; None: it can."""
        for row in self._rows[:_LOOKED_AT]:
            for name, value in _inputs(row).items():
                if name in _SETTINGS:
                    return f"an input is named {name!r}, which DSPy may take for a setting; such a program is not tried"
                if (other := _not_plain(value)) is not None:
                    return f"the input {name!r} holds a {other}, which cannot be made of plain values here"
        return None


class _Reader:
    """One look through a value: it is plain, of bounded size, and holds no attachment."""

    def __init__(self) -> None:
        self._chars = MOST_CHARS
        self._values = _MOST_VALUES

    def read(self, value: Any, path: str, depth: int) -> None:
        """Raises `InputsError`."""
        self._values -= 1
        if self._values < 0 or depth > _DEEPEST:
            raise InputsError(f"{path}: at most {_MOST_VALUES:,} values are taken, nested at most {_DEEPEST} deep")
        if isinstance(value, str):
            self._text(value, path)
        elif isinstance(value, bytes):
            self._count(len(value), path)
        elif isinstance(value, Mapping):
            for key, item in cast("Mapping[Any, Any]", value).items():
                if not isinstance(key, str):
                    raise InputsError(f"{path}: the keys of a dict must be texts, got {brief(key)}")
                self._text(key, path)
                self.read(item, f"{path}[{brief(key, 40)}]", depth + 1)
        elif isinstance(value, list):
            for number, item in enumerate(cast("list[Any]", value)):
                self.read(item, f"{path}[{number}]", depth + 1)
        elif isinstance(value, int):
            if value.bit_length() > _MOST_BITS:
                raise InputsError(f"{path}: the number is too long")
        elif value is not None and not isinstance(value, float):
            raise InputsError(f"{path}: plain values only, got {type(value).__name__}")

    def _text(self, text: str, path: str) -> None:
        self._count(len(text), path)
        if has_attachments(text):
            raise InputsError(f"{path} holds DSPy's mark of attachments, which is not taken")

    def _count(self, length: int, path: str) -> None:
        self._chars -= length
        if self._chars < 0:
            raise InputsError(f"{path}: at most {MOST_CHARS:,} characters are taken, all texts together")


def _inputs(row: Row) -> dict[str, Any]:
    inputs = cast("Any", row.example.inputs())
    return {name: inputs[name] for name in cast("list[str]", inputs.keys())}


def _not_plain(value: Any) -> str | None:
    """The type of what is no plain value in `value`; None: all of it is plain."""
    kind = cast("type[Any]", type(value))
    if kind not in _PLAIN:
        return f"dspy.{kind.__name__}" if issubclass(kind, dspy.Type) else kind.__name__
    items: Any = ()
    if kind is list:
        items = value
    elif kind is dict:
        items = cast("dict[Any, Any]", value).values()
    return next((other for item in items if (other := _not_plain(item)) is not None), None)
