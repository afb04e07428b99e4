"""The live page's server: its addresses, and how long it lives."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.show.live_page.access import Access, new_secret
from rlmoptimizer.show.live_page.application import Application
from rlmoptimizer.show.live_page.connections import MOST_AT_ONCE, Connection
from rlmoptimizer.show.live_page.optimizations import Optimizations

__all__ = ["LiveServer"]

_HOST = "127.0.0.1"
_MOST_HEAD_BYTES = 16 * 1024  # of a request before its body
_LEAVE_SECONDS = 1  # that answers under way have when the server ends


class LiveServer:
    """Serves the page to this machine. Listens from its making on; `run` answers until `stop` or Ctrl-C.

    Raises `InvalidSetup` when the port cannot be had. Use as a context manager.
    """

    def __init__(self, optimizations: Optimizations, *, port: int = 0) -> None:
        """`port`: 0 takes a free one."""
        try:
            self._socket = socket.create_server((_HOST, port), backlog=MOST_AT_ONCE)
        except (OSError, OverflowError) as error:
            raise InvalidSetup(f"port {port} cannot be listened on ({error}); pass another one, or none") from error
        secret = new_secret()
        self.port: int = self._socket.getsockname()[1]
        self.address = f"http://{_HOST}:{self.port}/{secret}/{optimizations.first}/"
        self._optimizations = optimizations
        self._application = Application(optimizations)
        config = uvicorn.Config(
            Access(self._application, secret),
            http=Connection,
            backlog=MOST_AT_ONCE,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            access_log=False,  # addresses hold the secret
            log_config=None,
            log_level="critical",  # the application logs its own errors
            h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
            timeout_graceful_shutdown=_LEAVE_SECONDS,
        )
        self._server = _Server(config, self._application)

    def run(self) -> None:
        """Answer until `stop`, or until Ctrl-C in the main thread, which raises KeyboardInterrupt at the end."""
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def stop(self) -> None:
        """Let `run` return soon. From any thread; idempotent."""
        self._server.should_exit = True

    def close(self) -> None:
        """Idempotent. Once `run` has returned."""
        self._socket.close()
        self._optimizations.close()

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._application.close()  # first: it waits for the streams of changes
        await super().shutdown(sockets)
        # One that was taken as this began is not told by the stock server, and its client would wait for ever.
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # the event loop closes them in its next turn
