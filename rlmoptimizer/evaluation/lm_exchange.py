"""One exchange of a step with its LM, read from the entry that DSPy writes into its histories about a call."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from dspy.lm15 import Response

from kernel_bridge.text import cut_middle

__all__ = ["ExampleRequests", "answer_text", "exchange_dict", "was_truncated"]

_MOST_MESSAGES: Final = 24  # of one request; more lose their middle
_REQUEST_CHARS: Final = 16_000  # of its texts together
_MESSAGE_CHARS: Final = 500  # of one text at least
_ANSWER_CHARS: Final = 4_000
_PART_CHARS: Final = 100  # of what describes an attachment or a tool
_MOST_TOOLS: Final = 50
_CUT: Final = frozenset({"length", "max_tokens", "max_output_tokens"})


class ExampleRequests:
    """Which requests of a run are kept: for each step one, of the first example in which it ran. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: dict[str, int] = {}

    def take(self, step: str, position: int) -> bool:
        """Whether `step` is not known to have run in an example before this one; from now on it is known of this one.

        So a request is kept of the first example in any case, and of few others that ran at the same time.
        """
        with self._lock:
            if position >= self._first.get(step, position + 1):
                return False
            self._first[step] = position
            return True


def answer_text(entry: Mapping[str, Any]) -> str | None:
    """The text that was answered, the first one of several; None: there is none."""
    outputs = entry.get("outputs")
    first = outputs[0] if isinstance(outputs, list) and outputs else None
    text = cast("dict[str, Any]", first).get("text") if isinstance(first, dict) else first
    return text if isinstance(text, str) else None


def was_truncated(entry: Mapping[str, Any]) -> bool:
    """Whether an answer ends where it does because no more tokens were allowed.

    DSPy's own engines say so in a `finish_reason`, chat models called otherwise in that of a choice, and Responses
    models in `incomplete_details`. Answers from DSPy's cache say what they said when they were new.
    """
    response = entry.get("response")
    answers = cast("tuple[Any, ...]", response) if isinstance(response, tuple) else (response,)
    try:
        return any(map(_is_cut, answers))
    except Exception:  # noqa: BLE001 - an object of a foreign client
        return False


def _is_cut(answer: Any) -> bool:
    if type(answer) is Response:  # by far the commonest, and it has no other reason
        return answer.finish_reason in _CUT
    choices: Any = _field(answer, "choices")
    reasons = [_field(answer, "finish_reason"), _field(_field(answer, "incomplete_details"), "reason")]
    if isinstance(choices, (list, tuple)):
        reasons += [_field(choice, "finish_reason") for choice in cast("Sequence[Any]", choices)]
    return any(isinstance(reason, str) and reason in _CUT for reason in reasons)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def exchange_dict(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What was sent and what came back, as the agent gets it: `messages` with `role` and `content`, and `completion`.

    Texts that are too long lose their middle. Attachments are described in brackets. `tools`: the names of those that
    the LM was told of apart from the messages; only where there are some. Without messages where they cannot be read.
    """
    completion = answer_text(entry)
    try:
        request = _request(entry)
    except Exception:  # noqa: BLE001 - an LM or a program writes into it what it likes; the call was answered
        request = {"messages": []}
    return {**request, "completion": None if completion is None else cut_middle(completion, _ANSWER_CHARS)}


def _request(entry: Mapping[str, Any]) -> dict[str, Any]:
    messages = entry.get("messages")
    if not isinstance(messages, list):
        messages = [{"role": "user", "content": entry.get("prompt") or ""}]
    some = _fewer(cast("list[Any]", messages))
    limit = max(_MESSAGE_CHARS, _REQUEST_CHARS // max(1, len(some)))
    texts = [(_role(message), _content(message)) for message in some]
    if sum(len(text) for _, text in texts) <= _REQUEST_CHARS:
        limit = _REQUEST_CHARS
    tools = _tool_names(entry)
    return {
        "messages": [{"role": role, "content": cut_middle(text, limit)} for role, text in texts],
        **({"tools": tools} if tools else {}),
    }


def _fewer(messages: list[Any]) -> list[Any]:
    if len(messages) <= _MOST_MESSAGES:
        return messages
    half = _MOST_MESSAGES // 2
    left_out = f"[{len(messages) - 2 * half:,} messages left out]"
    return [*messages[:half], {"role": "...", "content": left_out}, *messages[-half:]]


def _role(message: Any) -> str:
    role = _field(message, "role")
    return role if isinstance(role, str) else "?"


def _content(message: Any) -> str:
    content = _field(message, "content")
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        return "".join(map(_part, cast("Sequence[Any]", content)))
    calls = _field(message, "tool_calls")
    return "" if calls is None else f"[tool calls: {json.dumps(calls, ensure_ascii=False, default=str)}]"


def _part(part: Any) -> str:
    """One part of a message: a text as it is, anything else by what it is and how long."""
    text = _field(part, "text")
    if isinstance(text, str):
        return text
    kind = str(_field(part, "type") or type(part).__name__)[:_PART_CHARS]
    size = len(json.dumps(part, ensure_ascii=False, default=lambda _: "?")) if isinstance(part, dict) else 0
    return f"[{kind}, {size:,} characters]" if size else f"[{kind}]"


def _tool_names(entry: Mapping[str, Any]) -> list[str]:
    given = _field(entry.get("kwargs"), "tools")
    if not isinstance(given, (list, tuple)):
        return []
    names = [_field(_field(tool, "function"), "name") or _field(tool, "name") for tool in cast("Sequence[Any]", given)]
    return [str(name)[:_PART_CHARS] for name in names if name][:_MOST_TOOLS]
