"""Where a kernel listens: its addresses, the connection file, the kernel's own copy of it. Knows no process."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_bridge.files.layout import Layout
from kernel_bridge.files.private_files import make_file
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.process.loopback import Endpoint, LoopbackListener
from kernel_bridge.process.moved_sockets import MovedSockets

__all__ = ["Connection"]


@dataclass(frozen=True, slots=True)
class Connection:
    """Where one kernel listens."""

    info: dict[str, Any]  # Jupyter's connection info as the host needs it, `key` as bytes
    inside_file: str  # the connection file that the kernel reads
    endpoints: tuple[Endpoint, Endpoint]  # of the tool channel, for calls and for replies
    inside_urls: tuple[str, str]  # the same, as the kernel sees them
    moved_sockets: MovedSockets | None  # must be moved before the host can connect; None: nothing must

    @staticmethod
    def open(directory: SessionDirectory, layout: Layout, inside: Layout) -> Connection:
        """Choose addresses for a new kernel and write its connection file, and the kernel's own copy of it."""
        key = secrets.token_hex(32).encode()
        if os.name == "posix":
            shared: dict[str, Any] = {"key": key, "transport": "ipc", **dict(zip(_CHANNELS, range(1, 6), strict=True))}
            endpoints: list[Endpoint] = [f"ipc://{directory.host_sockets}/{name}" for name in _TOOL_SOCKETS]
            inside_urls = tuple(f"ipc://{inside.sockets}/{name}" for name in _TOOL_SOCKETS)
            ips = str(directory.host_sockets / "s"), str(inside.sockets / "s")
            needed = (*reversed(_TOOL_SOCKETS), "s-1")
            moved = MovedSockets(layout.sockets, directory.host_sockets, needed, _CONSOLE_SOCKETS)
        else:
            # Whoever takes one of these ports before the kernel keeps it from starting, and is told nothing: the host
            # connects when the kernel has said through the tool channel that it is ready, and then holds them all.
            free = _free_ports(len(_CHANNELS))
            shared = {"key": key, "transport": "tcp", **dict(zip(_CHANNELS, free, strict=True))}
            listeners = [LoopbackListener(key, "PAIR") for _ in _TOOL_SOCKETS]
            endpoints, inside_urls = [*listeners], tuple(listener.url for listener in listeners)
            ips = "127.0.0.1", "127.0.0.1"
            moved = None
        info = _write_connection(directory.connection_file, ip=ips[0], **shared)
        _write_connection(layout.sockets / "kernel.json", ip=ips[1], **shared)
        file = str(inside.sockets / "kernel.json")
        inside_pair = inside_urls[0], inside_urls[1]
        return Connection({**info, "key": key}, file, (endpoints[0], endpoints[1]), inside_pair, moved)

    def close(self) -> None:
        """Listen no more. Idempotent."""
        for endpoint in self.endpoints:
            if isinstance(endpoint, LoopbackListener):
                endpoint.close()

    def url(self, channel: str) -> str:
        """The address of a Jupyter channel: shell, iopub, stdin, control or hb."""
        joint = "-" if self.info["transport"] == "ipc" else ":"
        return f"{self.info['transport']}://{self.info['ip']}{joint}{self.info[channel + '_port']}"


_TOOL_SOCKETS = ("c", "r")  # calls, replies; bound in this order, after all others
_CONSOLE_SOCKETS = ("s-2", "s-3", "s-4", "s-5")
_CHANNELS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def _write_connection(path: Path, *, key: bytes, **facts: Any) -> dict[str, Any]:
    info = {**facts, "key": key.decode(), "signature_scheme": "hmac-sha256", "kernel_name": "kernel_bridge"}
    if os.name == "posix":  # Jupyter's own function fails under a mask that takes from an owner what he needs
        make_file(path, json.dumps(info, indent=2).encode())
    else:  # and here it keeps other users out
        from jupyter_client.connect import write_connection_file

        path.unlink(missing_ok=True)
        write_connection_file(str(path), key=key, kernel_name="kernel_bridge", **facts)
    return info


def _free_ports(count: int) -> list[int]:
    import socket

    holders = [socket.socket() for _ in range(count)]
    try:
        for holder in holders:
            holder.bind(("127.0.0.1", 0))
        return [holder.getsockname()[1] for holder in holders]
    finally:
        for holder in holders:
            holder.close()
