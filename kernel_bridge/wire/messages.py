"""The six messages: the head frame of each, written and read."""

from __future__ import annotations

from typing import Any, Union, cast

import msgspec

from kernel_bridge.wire.frame import Frame, WireError

__all__ = [
    "LONGEST_NAME",
    "Call",
    "Foreign",
    "HostMessage",
    "KernelMessage",
    "Raise",
    "Ready",
    "Return",
    "Submit",
    "read_host_head",
    "read_kernel_head",
    "write_head",
]

LONGEST_NAME = 1000  # characters of a tool's name in a call
_HEAD_BYTES = 4 * LONGEST_NAME + 64
_HOST_HEAD_BYTES = 2**20  # it holds the text of an error


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    """Kernel to host, once: the kernel takes cells. Its namespace is empty."""


class Call(msgspec.Struct, tag="call", array_like=True, frozen=True):
    """Kernel to host: run a tool. Body: `[positional arguments, keyword arguments]`."""

    id: int
    name: str


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    """Kernel to host: the final output of a cell. Body: a dict, field name to value."""

    id: int


class Foreign(msgspec.Struct, tag="foreign", array_like=True, frozen=True):
    """Kernel to host: another client's cell, a console's, starts or ends. The host's own cells wait for it."""

    running: bool


class Return(msgspec.Struct, tag="return", array_like=True, frozen=True):
    """Host to kernel: a call or a submission is done. Body: its result."""

    id: int


class Raise(msgspec.Struct, tag="raise", array_like=True, frozen=True):
    """Host to kernel: a call or a submission was refused or failed."""

    id: int
    kind: str  # the exception's class name
    message: str


KernelMessage = Union[Ready, Call, Submit, Foreign]  # noqa: UP007 - msgspec reads it at run time
HostMessage = Union[Return, Raise]  # noqa: UP007

_heads = msgspec.msgpack.Encoder()
_kernel_heads: msgspec.msgpack.Decoder[KernelMessage] = msgspec.msgpack.Decoder(KernelMessage)
_host_heads: msgspec.msgpack.Decoder[HostMessage] = msgspec.msgpack.Decoder(HostMessage)


def write_head(message: KernelMessage | HostMessage) -> bytes:
    """The head frame of a message."""
    try:
        return _heads.encode(message)
    except UnicodeEncodeError:
        # An error text or a name may hold a lone surrogate; the message matters more than that one character.
        return _heads.encode(_clean(msgspec.to_builtins(message)))


def _clean(part: Any) -> Any:
    """The same part of a head, with lone surrogates written as escapes."""
    if isinstance(part, str):
        return part.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(part, list):
        return [_clean(item) for item in cast("list[Any]", part)]
    if isinstance(part, dict):
        return {_clean(key): _clean(item) for key, item in cast("dict[Any, Any]", part).items()}
    return part


def read_kernel_head(frame: Frame) -> KernelMessage:
    """The head of a message from a kernel. Raises: WireError when it is not one a kernel may send."""
    return _read_head(_kernel_heads, frame, _HEAD_BYTES)


def read_host_head(frame: Frame) -> HostMessage:
    """The head of a message from the host. Raises: WireError when it is not one a host may send."""
    return _read_head(_host_heads, frame, _HOST_HEAD_BYTES)


def _read_head(decoder: msgspec.msgpack.Decoder[Any], frame: Frame, most: int) -> Any:
    if len(frame) > most:
        raise WireError(f"a head of {len(frame)} bytes; at most {most}")
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"not a message: {error}") from error
