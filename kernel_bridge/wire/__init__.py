"""The wire: what both ends write and read. No sockets, no threads, no dspy.

That is the six messages of the tool channel and their codec, whose names are here, and in `jupyter_messages` those of
Jupyter's channels.

Every message of the tool channel is two frames: a small typed head and a body that holds one value (empty when the
message has none). A value is None, a bool, an int of any size, a float (NaN and the infinities too), a str, bytes, a
list, or a dict with string keys. Other kinds are turned into these or refused before a byte is sent; see `Codec.dump`.
"""

from __future__ import annotations

from kernel_bridge.wire.codec import Codec
from kernel_bridge.wire.frame import WireError
from kernel_bridge.wire.messages import (
    LONGEST_NAME,
    Call,
    Foreign,
    HostMessage,
    KernelMessage,
    Raise,
    Ready,
    Return,
    Submit,
    read_host_head,
    read_kernel_head,
    write_head,
)
from kernel_bridge.wire.paged_list import PAGE_CALL, PagedList, PageSource
from kernel_bridge.wire.values import Unsendable

__all__ = [
    "LONGEST_NAME",
    "PAGE_CALL",
    "Call",
    "Codec",
    "Foreign",
    "HostMessage",
    "KernelMessage",
    "PageSource",
    "PagedList",
    "Raise",
    "Ready",
    "Return",
    "Submit",
    "Unsendable",
    "WireError",
    "read_host_head",
    "read_kernel_head",
    "write_head",
]
