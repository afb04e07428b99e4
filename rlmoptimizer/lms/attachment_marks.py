"""Keeps text of the agent, its kernel and LMs from being more than text in a request.

DSPy reads what stands between two marks of its own, in any text of a message, as a part such as an image's URL. And
what a kernel prints could look like the field of a person's notes, so it never has that field's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from dspy.primitives.repl_types import REPLEntry, REPLHistory

from kernel_bridge.interpreter import only_text, only_text_in
from rlmoptimizer.lms.person_notes import without_notes_field

__all__ = ["has_attachments", "text_messages", "turn_inputs"]


def has_attachments(text: str) -> bool:
    """Whether DSPy may find one in this text."""
    return only_text(text) != text


def turn_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a turn of the agent, as text only."""
    return {name: _turn_input(value) for name, value in inputs.items()}


def _turn_input(value: Any) -> Any:
    return _history(value) if isinstance(value, REPLHistory) else without_notes_field(only_text_in(value))


def _history(history: REPLHistory) -> REPLHistory:
    entries = [
        REPLEntry(
            reasoning=only_text(entry.reasoning),
            code=only_text(entry.code),
            output=without_notes_field(only_text(entry.output)),
        )
        for entry in history.entries
    ]
    return history.model_copy(update={"entries": entries})


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
