"""The control channel before IPython is there: a person's interrupt reaches the cell that runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import zmq

from kernel_bridge.inside.host_messages import Messages

__all__ = ["EarlyControl"]

_poll = zmq.zmq_poll  # the agent's code may replace the module's
_ADDRESS = "inproc://early-control"


class EarlyControl:
    """A thread that answers interrupts, and keeps all other messages for IPython.

    Args:
        socket: of the control channel, which belongs to the thread until `stop`.

    Attributes:
        needs_ipython: a socket for the main thread, which can be read when a message is kept.
    """

    def __init__(self, context: zmq.Context[Any], socket: zmq.Socket[bytes], messages: Messages) -> None:
        self._socket = socket
        self._messages = messages
        self._kept: list[Sequence[Any]] = []
        self.needs_ipython = context.socket(zmq.PAIR)
        self.needs_ipython.bind(_ADDRESS)
        self._stopped = context.socket(zmq.PAIR)
        self._stopped.connect(_ADDRESS)
        self._thread = threading.Thread(target=self._watch, name="Control", daemon=True)
        self._thread.start()

    def stop(self) -> list[Sequence[Any]]:
        """End the thread. Returns the messages that it has kept, as frames. From the main thread."""
        self.needs_ipython.send(b"")
        self._thread.join()
        self.needs_ipython.close(0)
        self._stopped.close(0)
        return self._kept

    def _watch(self) -> None:
        watched = [(self._socket, zmq.POLLIN), (self._stopped, zmq.POLLIN)]
        while True:
            if any(socket is self._stopped for socket, _ in _poll(watched, -1)):
                return
            frames = self._socket.recv_multipart(copy=False)
            found = self._messages.read(frames, "interrupt_request")
            if found is None:
                if not self._kept:
                    self._stopped.send(b"")  # once: the main thread, which may be busy, takes none
                self._kept.append(frames)
                continue
            ident, parent = found
            _interrupt()
            self._socket.send_multipart([*ident, *self._messages.frames("interrupt_reply", {"status": "ok"}, parent)])


def _interrupt() -> None:
    """What Ctrl-C in a terminal would do, with this process and those that it has started."""
    if os.name != "posix":
        signal.raise_signal(signal.SIGINT)
    elif os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGINT)
    else:
        os.kill(os.getpid(), signal.SIGINT)
