"""Where a kernel listens: its addresses, the connection file, the kernel's own copy of it."""

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
from kernel_bridge.process.protected_sockets import ProtectedSockets

__all__ = ["Connection"]


@dataclass(frozen=True, slots=True)
class Connection:
    """Where one kernel listens."""

    info: dict[str, Any]  # Jupyter's connection info as the host needs it, `key` as bytes
    inside_file: str  # the connection file that the kernel reads
    endpoints: tuple[Endpoint, Endpoint]  # of the tool channel, for calls and for replies
    inside_urls: tuple[str, str]  # the same, as the kernel sees them
    moved_sockets: ProtectedSockets | None  # must be moved before the host can connect; None: nothing must
    files: tuple[Path, Path]  # the connection file, made by `publish`, and the kernel's own

    @staticmethod
    def open(directory: SessionDirectory, layout: Layout, inside: Layout) -> Connection:
        """Choose addresses for a new kernel and write the connection file that it reads."""
        key = secrets.token_hex(32).encode()
        if os.name == "posix":
            shared: dict[str, Any] = {"key": key, "transport": "ipc", **dict(zip(_CHANNELS, range(1, 6), strict=True))}
            endpoints: list[Endpoint] = [f"ipc://{directory.host_sockets}/{name}" for name in _TOOL_SOCKETS]
            inside_urls = tuple(f"ipc://{inside.sockets}/{name}" for name in _TOOL_SOCKETS)
            ips = str(directory.host_sockets / "s"), str(inside.sockets / "s")
            needed = (*reversed(_TOOL_SOCKETS), "s-1")
            moved = ProtectedSockets(layout.sockets, directory.host_sockets, needed, _CONSOLE_SOCKETS)
        else:
            # The kernel chooses its own ports, so that nobody can be there before it. They are learned when it has said
            # through the tool channel, which only it can, that it is ready.
            shared = {"key": key, "transport": "tcp", **dict.fromkeys(_CHANNELS, 0)}
            listeners = [LoopbackListener(key, "PAIR") for _ in _TOOL_SOCKETS]
            endpoints, inside_urls = [*listeners], tuple(listener.url for listener in listeners)
            ips = "127.0.0.1", "127.0.0.1"
            moved = None
        files = directory.connection_file, layout.sockets / "kernel.json"
        _write_connection(files[1], ip=ips[1], **shared)
        file = str(inside.sockets / "kernel.json")
        pairs = (endpoints[0], endpoints[1]), (inside_urls[0], inside_urls[1])
        return Connection({**shared, "ip": ips[0]}, file, *pairs, moved, files)

    def learn_ports(self) -> None:
        """Learn the ports that a kernel has chosen for itself, once it is ready. Raises: OSError, ValueError."""
        if self.info["transport"] != "tcp":
            return
        with open(self.files[1], "rb") as file:
            data = file.read(_MOST_INFO_BYTES)
        try:  # a kernel that restores a checkpoint has run the agent's code by now
            chosen = json.loads(data)
            ports: dict[str, Any] = {name: chosen[name] for name in _CHANNELS}
        except (ValueError, TypeError, KeyError, RecursionError):
            ports = {}
        if not ports or not all(type(port) is int and 0 < port < 2**16 for port in ports.values()):
            raise ValueError("the kernel's connection file does not say which ports it has chosen")
        self.info.update(ports)

    def publish(self) -> None:
        """Write the connection file for consoles, in the place of one of an earlier kernel. Raises: OSError."""
        _write_connection(self.files[0], **self.info)

    def close(self) -> None:
        """Listen no more. Idempotent."""
        for endpoint in self.endpoints:
            if isinstance(endpoint, LoopbackListener):
                endpoint.close()

    def url(self, channel: str) -> str:
        """The address of a Jupyter channel: shell, iopub, stdin, control or hb."""
        joint = "-" if self.info["transport"] == "ipc" else ":"
        return f"{self.info['transport']}://{self.info['ip']}{joint}{self.info[channel + '_port']}"


_MOST_INFO_BYTES = 4096
_TOOL_SOCKETS = ("c", "r")  # calls, replies; bound in this order, after all others
_CONSOLE_SOCKETS = ("s-2", "s-3", "s-4", "s-5")
_CHANNELS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def _write_connection(path: Path, *, key: bytes, **facts: Any) -> None:
    info = {**facts, "key": key.decode(), "signature_scheme": "hmac-sha256", "kernel_name": "kernel_bridge"}
    text = json.dumps(info, indent=2)
    if os.name == "posix":  # Jupyter's own function fails under a mask that takes from an owner what he needs
        make_file(path, text.encode())
    else:  # and here it keeps other users out
        from jupyter_core.paths import secure_write

        path.unlink(missing_ok=True)
        with secure_write(str(path)) as file:
            file.write(text)
