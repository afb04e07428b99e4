"""Keeps text of the agent, its kernel and LMs from being more than text in a request.

DSPy reads what stands between two marks of its own, in any text of a message, as a part such as an image's URL. And
what a kernel prints could look like the field of a person's notes, so it never has that field's name.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from dspy.primitives.repl_types import REPLEntry, REPLHistory

from kernel_bridge.with_dspy.attachment_marks import only_text, only_text_in
from rlmoptimizer.lms.person_notes import without_notes_field

__all__ = ["TurnText", "has_attachments", "text_messages"]


def has_attachments(text: str) -> bool:
    """Whether DSPy may find one in this text."""
    return only_text(text) != text


class TurnText:
    """The inputs of a growing conversation's turns, as text only. Each entry of the history is looked at once."""

    def __init__(self) -> None:
        self._raw: list[REPLEntry] = []
        self._clean: list[REPLEntry] = []

    def inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of one turn."""
        return {name: self._input(value) for name, value in inputs.items()}

    def _input(self, value: Any) -> Any:
        return self._history(value) if isinstance(value, REPLHistory) else without_notes_field(only_text_in(value))

    def _history(self, history: REPLHistory) -> REPLHistory:
        entries = history.entries
        pairs = zip(self._raw, entries, strict=False)
        known = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] is pair[1], pairs))
        self._raw = list(entries)
        self._clean = self._clean[:known] + [_clean_entry(entry) for entry in entries[known:]]
        return history.model_copy(update={"entries": list(self._clean)})


def _clean_entry(entry: REPLEntry) -> REPLEntry:
    return REPLEntry(
        reasoning=only_text(entry.reasoning),
        code=only_text(entry.code),
        output=without_notes_field(only_text(entry.output)),
    )


def text_messages(messages: Any) -> Any:
    """The messages of a sub-agent, with the parts of each joined to one text again."""
    if not isinstance(messages, list):
        return messages
    return [_text_message(message) for message in cast("list[Any]", messages)]


def _text_message(message: Any) -> Any:
    fields = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
    content = fields.get("content")
    if not isinstance(content, list):
        return cast("Any", message)
    return {**fields, "content": "".join(_text_of(part) for part in cast("Sequence[Any]", content))}


def _text_of(part: Any) -> str:
    text = cast("dict[str, Any]", part).get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else json.dumps(part, ensure_ascii=False, default=str)
