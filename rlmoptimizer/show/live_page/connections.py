"""The connections of the live page's server, a bounded number: every user of the machine can open some and be quiet."""

from __future__ import annotations

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["MOST_AT_ONCE", "Connection"]

MOST_AT_ONCE = 32  # that are taken before any of them is looked at
_MOST = 128  # far more than a person's pages have, and fewer than the files that a process may open


class Connection(H11Protocol):
    """One connection. Where there are too many, the oldest that has no request is ended; it may be this one.

    Without it a process whose files are used up takes no more connections, and asyncio logs an error for each of them.
    """

    made = 0.0  # when, by the clock of the event loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        self.made = self.loop.time()
        every = cast("set[Connection]", self.connections)
        there = [one for one in every if not one.transport.is_closing()]
        if len(there) > _MOST:
            quiet = (one for one in there if one.conn.their_state is h11.IDLE)
            min(quiet, key=lambda one: one.made).transport.abort()
