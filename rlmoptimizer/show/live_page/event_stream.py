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
        with self._changes.listening():
            telling, leaving = asyncio.create_task(self._tell(send)), asyncio.create_task(_left(receive))
            try:
                await asyncio.wait((telling, leaving), return_when=asyncio.FIRST_COMPLETED)
                if telling.done():
                    telling.result()  # raises what it met
            finally:
                telling.cancel()
                leaving.cancel()
                await asyncio.gather(telling, leaving, return_exceptions=True)

    async def _tell(self, send: Send) -> None:
        await _send(send, f"retry: {_RETRY_MS}\n\n")
        seen: Status | None = None
        while True:
            try:
                newest = await asyncio.wait_for(self._changes.after(seen), _QUIET_SECONDS)
            except asyncio.TimeoutError:
                await _send(send, "event: alive\ndata:\n\n")
                continue
            if newest is None:
                await send({"type": "http.response.body", "body": b""})
                return
            seen = newest
            await _send(send, f"event: status\ndata: {json.dumps(newest.to_dict())}\n\n")


async def _send(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
