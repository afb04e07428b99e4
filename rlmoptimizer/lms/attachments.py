"""Texts in which DSPy finds attachments: it reads what stands between two marks of its own in any text of a message as
parts of the message, such as an image's URL. Texts of the agent, its kernel and of LMs hold text only. Knows no LM.
"""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from dspy.primitives.repl_types import REPLEntry, REPLHistory

from kernel_bridge.interpreter import OnlyText, only_text, only_text_in

__all__ = ["OnlyText", "has_attachments", "text_messages", "turn_inputs"]


def has_attachments(text: str) -> bool:
    """Whether DSPy may find one in this text."""
    return only_text(text) != text


def turn_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a turn of the agent is told, as text only."""
    return {name: _turn_input(value) for name, value in inputs.items()}


def _turn_input(value: Any) -> Any:
    return _history(value) if isinstance(value, REPLHistory) else only_text_in(value)


def _history(history: REPLHistory) -> REPLHistory:
    texts = [(entry.reasoning, entry.code, entry.output) for entry in history.entries]
    if not any(has_attachments(text) for parts in texts for text in parts):
        return history
    entries = [
        REPLEntry(reasoning=only_text(reasoning), code=only_text(code), output=only_text(output))
        for reasoning, code, output in texts
    ]
    return history.model_copy(update={"entries": entries})


def text_messages(messages: Any) -> Any:
    """The messages of a sub-agent, whose parts are put together again to one text each."""
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
