"""The sockets of a Jupyter kernel, bound where its connection file says."""

from __future__ import annotations

import errno
import json
import threading
from typing import Any

import zmq

__all__ = ["KernelSockets"]


class KernelSockets:
    """Shell, control, stdin and iopub. Heartbeats are answered by a thread from now on.

    Args:
        connection_file: of the host. Where it leaves the choice of ports to the kernel, they are written there.
    """

    def __init__(self, connection_file: str) -> None:
        with open(connection_file, encoding="utf-8") as file:
            self._info: dict[str, Any] = json.load(file)
        self.key = str(self._info["key"]).encode()
        self.context: zmq.Context[Any] = zmq.Context()
        self.shell = self._bound(self.context, "shell", zmq.ROUTER)
        self.stdin = self._bound(self.context, "stdin", zmq.ROUTER)
        self.control = self._bound(self.context, "control", zmq.ROUTER)
        self.iopub = self._bound(self.context, "iopub", zmq.XPUB)
        # In a context of its own: freeing a message that was not copied waits for Python's lock, and would delay these.
        heartbeats = self._bound(zmq.Context(), "hb", zmq.ROUTER)
        threading.Thread(target=_beat, args=(heartbeats,), name="Heartbeat", daemon=True).start()
        if self._info["transport"] == "tcp":
            with open(connection_file, "w", encoding="utf-8") as file:
                json.dump(self._info, file, indent=2)

    def _bound(self, context: zmq.Context[Any], channel: str, kind: int) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        socket.linger = 0
        if kind == zmq.ROUTER:
            socket.router_handover = 1  # a client that connects again under its name takes the place of the old one
        transport, ip, port = (self._info[name] for name in ("transport", "ip", f"{channel}_port"))
        if transport == "ipc":
            socket.bind(f"ipc://{ip}-{port}")
        else:
            self._info[f"{channel}_port"] = socket.bind_to_random_port(f"tcp://{ip}")
        return socket


def _beat(socket: zmq.Socket[bytes]) -> None:
    while True:
        try:
            zmq.proxy(socket, socket)
        except zmq.ZMQError as error:
            if error.errno != errno.EINTR:
                return
