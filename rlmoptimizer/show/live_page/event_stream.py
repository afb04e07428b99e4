"""A stream of server-sent events that tells one page what has changed, until it leaves or the server ends."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rlmoptimizer.show.live_page.changes import Changes
from rlmoptimizer.show.live_page.shown_optimization import Status

__all__ = ["EventStream"]

_RETRY_MS: Final = 1000  # after which the browser connects again
_QUIET_SECONDS: Final = 15.0  # after which "alive" is sent, so that either side notices when the other is gone


class EventStream(Response):
    """Sends the status at once and each time it is new, as the event "status". Keeps nothing for a slow reader."""

    def __init__(self, changes: Changes[Status]) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self._changes = changes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _send(send, f"retry: {_RETRY_MS}\n\n")
        leaving = asyncio.create_task(_left(receive))
        try:
            with self._changes.listening():
                await self._tell(send, leaving)
        finally:
            leaving.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _tell(self, send: Send, leaving: asyncio.Task[None]) -> None:
        seen: Status | None = None
        while not leaving.done():
            # Not `wait_for`: before Python 3.12 it may lose that it was cancelled.
            coming = asyncio.create_task(self._changes.after(seen))
            try:
                await asyncio.wait((coming, leaving), timeout=_QUIET_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    await _send(send, "event: alive\ndata:\n\n")
                    continue
                seen = coming.result()
            finally:
                coming.cancel()
            if seen is None:
                return
            await _send(send, f"event: status\ndata: {json.dumps(seen.to_dict())}\n\n")


async def _send(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
