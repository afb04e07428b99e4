"""The calls that the agent's code made of its tools, and what it got: records, and the rows that hold them. No dspy.

An answer that shows examples of a run does not hold them a second time: it names them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from rlmoptimizer.store.json_text import decode, encode
from rlmoptimizer.store.rows import as_column, from_column

__all__ = [
    "AGENT_BEGAN", "CELL_ENDED", "CellEnd", "MadeCall", "ToolCall", "ToolReply", "made_call", "reply_columns",
    "request_digest", "tool_reply",
]  # fmt: skip

# Events of the store that a replay needs, and nobody else.
AGENT_BEGAN: Final = "AgentBegan"  # {"turn": its first, "variables", "left_out", "tools", "output_fields"}
CELL_ENDED: Final = "CellEnded"  # {"turn", "ended": a CellEnd}

CellEnd: TypeAlias = Literal["ok", "error", "submitted", "died"]  # how the agent's code of a turn ended


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call as it was made."""

    turn: int  # of the agent, 1-based
    tool: str  # its name; "SUBMIT" for a submission
    shown: str  # the call as one would write it, shortened
    request: str  # see `request_digest`
    stray: bool  # it was made or answered while its turn ran no code


@dataclass(frozen=True, slots=True)
class ToolReply:
    """What a call got."""

    answer: Any = None  # plain; without the rows that `examples` names
    examples: tuple[str, tuple[str, ...]] | None = None  # run id and example ids of the rows; None: the answer is whole
    error: tuple[str, str] | None = None  # class name and text of what it raised; None: it did not raise
    left_out: int = 0  # bytes of an answer that was too long to be kept


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A call in the store."""

    number: int  # 1-based, in the order of the answers
    call: ToolCall


def request_digest(tool: str, arguments: Mapping[str, Any]) -> str:
    """The same for the same tool and equal plain arguments, in this process and in any other.

    Raises TypeError or ValueError for arguments that are not plain.
    """
    text = encode([tool, dict(arguments)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def reply_columns(reply: ToolReply) -> tuple[Any, ...]:
    """The columns of `calls` from `answer` to `left_out`."""
    kept = reply.error is None and not reply.left_out
    return (
        as_column(encode(reply.answer)) if kept else None,
        None if reply.examples is None else as_column(encode([reply.examples[0], list(reply.examples[1])])),
        None if reply.error is None else as_column(encode(list(reply.error))),
        reply.left_out,
    )


def made_call(row: tuple[Any, ...]) -> MadeCall:
    """From the columns `number` to `stray`."""
    number, turn, tool, shown, request, stray = row
    return MadeCall(number, ToolCall(turn, from_column(tool), from_column(shown), request, bool(stray)))


def tool_reply(row: tuple[Any, ...]) -> ToolReply:
    """What `reply_columns` made the columns from. Raises ValueError or TypeError for any others."""
    answer, examples, error = (None if one is None else from_column(one) for one in row[:3])
    run_id, ids = (None, ()) if examples is None else decode(examples)
    name, text = ("", "") if error is None else decode(error)
    return ToolReply(
        answer=None if answer is None else decode(answer),
        examples=None if run_id is None else (str(run_id), tuple(map(str, ids))),
        error=None if error is None else (str(name), str(text)),
        left_out=row[3],
    )
