"""A kernel's replies: what it claims about a cell, checked, bounded, and made an outcome.

The agent's code can write anything into them: types are checked, texts cut to their limits, nothing else believed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from kernel_bridge.cells import CellOutcome, RemoteFailure
from kernel_bridge.errors import ProtocolViolation
from kernel_bridge.inside.restored_names import MOST_BYTES
from kernel_bridge.inside.transcript import sendable
from kernel_bridge.options import Limits
from kernel_bridge.text import cut_middle
from kernel_bridge.wire.jupyter_messages import DELIMITER
from kernel_bridge.zmtp.reader import Frame

__all__ = [
    "Reply",
    "RestoredNames",
    "find_reply",
    "largest_reply",
    "outcome_of",
    "read_reply",
    "read_restored",
]


_MOST_UNKEPT, _LONGEST_NAME, _LONGEST_REASON = 101, 200, 300  # names that a checkpoint lacks, in one reply
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Failure(msgspec.Struct):
    name: str
    message: str
    traceback: str
    compiling: bool


class _Bridge(msgspec.Struct):
    head: str
    tail: str
    omitted: _Count
    result: str | None
    failure: _Failure | None
    submitted: bool
    taken: bool
    unkept: dict[str, str]


class Reply(msgspec.Struct):
    """What a kernel claims about a cell."""

    kernel_bridge: _Bridge


class _Names(msgspec.Struct):
    restored: list[str]
    lost: dict[str, str]


class _RestoreReply(msgspec.Struct):
    kernel_bridge: _Names


@dataclass(frozen=True, slots=True)
class RestoredNames:
    """What a kernel claims to have restored from a checkpoint."""

    restored: tuple[str, ...]
    lost: Mapping[str, str]  # name -> why it is gone


class _Header(msgspec.Struct):
    msg_id: str = ""
    msg_type: str = ""


# Only what is asked for is ever built: a reply of many empty lists would take twenty times its size as objects.
_headers = msgspec.json.Decoder(_Header)
_replies = msgspec.json.Decoder(Reply)
_restore_replies = msgspec.json.Decoder(_RestoreReply)


_Reply = TypeVar("_Reply")


def find_reply(frames: Sequence[Frame], id: str, read: Callable[[Frame], _Reply]) -> _Reply | None:
    """The reply to the request with this id, if the message is it.

    Its signature is not looked at: the agent's code has the key.

    Args:
        read: `read_reply` or `read_restored`, by what was asked for.

    Raises:
        ProtocolViolation: the frames are no Jupyter message.
    """
    try:
        at = frames.index(DELIMITER)
        header, parent = _headers.decode(frames[at + 2]), _headers.decode(frames[at + 3])
        if parent.msg_id == id and header.msg_type == "execute_reply":
            return read(frames[at + 5])
    except (msgspec.MsgspecError, ValueError, IndexError, RecursionError) as error:
        kind = type(error).__name__
        raise ProtocolViolation(f"the kernel sent a malformed reply: {kind}: {error}") from error
    return None


def read_reply(content: Frame) -> Reply:
    """The reply to a cell. Raises: msgspec.MsgspecError."""
    return _replies.decode(content)


def read_restored(content: Frame) -> RestoredNames:
    """The reply to a `RestoreRequest`. Raises: msgspec.MsgspecError, ValueError."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"a list of restored names of {len(content)} bytes; at most {MOST_BYTES}")
    names = _restore_replies.decode(content).kernel_bridge
    lost = {_plain_text(sendable(name)): _plain_text(sendable(reason)) for name, reason in names.lost.items()}
    return RestoredNames(tuple(_plain_text(sendable(name)) for name in names.restored), lost)


def largest_reply(limits: Limits) -> int:
    """Bytes of the largest reply of an honest kernel: its texts, where JSON makes at most six bytes of a character."""
    return 6 * (3 * limits.output_bytes + limits.result_chars) + 2**20


def outcome_of(reply: Reply, submitted: dict[str, Any] | None, timed_out: str | None, limit: int) -> CellOutcome:
    """What a cell came to; `limit` is `Limits.output_bytes`, `submitted` what the host has accepted."""
    bridge = reply.kernel_bridge
    failure = None
    if bridge.failure is not None and submitted is None:
        said = bridge.failure
        failure = RemoteFailure(
            sendable(said.name)[:200],
            sendable(said.message)[:limit],
            cut_middle(_plain_text(sendable(said.traceback)), max(limit // 4, 1000)),
            said.compiling,
        )
    text, omitted = _join(bridge, limit)
    result = None if bridge.result is None else sendable(bridge.result)
    unkept = {
        sendable(name)[:_LONGEST_NAME]: _plain_text(sendable(reason))[:_LONGEST_REASON]
        for name, reason in itertools.islice(bridge.unkept.items(), _MOST_UNKEPT)
    }
    return CellOutcome(sendable(text), omitted, result, submitted, failure, timed_out, unkept=unkept)


def _join(bridge: _Bridge, limit: int) -> tuple[str, int]:
    """Head and tail as one text that says what is missing between them, within the limit whatever the kernel sent."""
    head, tail = bridge.head[:limit], bridge.tail[-limit:]
    omitted = max(0, bridge.omitted) + len(bridge.head) - len(head) + len(bridge.tail) - len(tail)
    if not omitted:
        return _plain_text(head + tail), 0
    return _plain_text(f"{head}\n... [{omitted:,} characters left out] ...\n{tail}"), omitted


def _plain_text(text: str) -> str:
    """Without ANSI escape sequences: no model reads them, and no person's terminal should obey the agent."""
    return _ANSI.sub("", text) if "\x1b" in text else text


_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])?")
