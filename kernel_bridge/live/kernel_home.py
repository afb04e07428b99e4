"""The home of a kernel: a directory of its own, and what the kernels in it are launched with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

from kernel_bridge.confine import resolve
from kernel_bridge.errors import StartupFailed, what_to_do
from kernel_bridge.files.live_sessions import sweep
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.live.kernel import LiveKernel
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.options import SessionOptions
from kernel_bridge.process.launch import LaunchOptions

__all__ = ["KernelHome"]


class KernelHome:
    """Where the kernels of a session live, one after the other, until one of them has another home.

    Raises:
        StartupFailed, ConfinementUnavailable.
    """

    def __init__(self, options: SessionOptions) -> None:
        with _trouble_explained():
            self.directory = SessionDirectory(options.runtime_dir)
            try:
                root = self.directory.path.parent
                sweep(root)
                confinement, tier, self.report = resolve(options.confinement, root)
            except BaseException:
                self.directory.remove()
                raise
        self.launched_with = LaunchOptions(options, confinement, tier)

    def launch(self, dispatcher: ToolDispatcher, given_up: Callable[[], str | None]) -> LiveKernel:
        """Start a kernel here; see `LiveKernel`. Raises: StartupFailed, ProtocolViolation."""
        with _trouble_explained():
            return LiveKernel(self.directory, self.launched_with, dispatcher, given_up)

    def publish(self, kernel: LiveKernel, started: float) -> None:
        """Let other processes of this user find the kernel, as one of a session that began then.

        Raises:
            StartupFailed: the disk is full.
        """
        with _trouble_explained():
            self.directory.note_start(started)
            kernel.process.connection.publish()

    def receive_checkpoint(self, left: KernelHome) -> None:
        """Take over the last checkpoint of a kernel that has died in another home. Raises: OSError, ValueError."""
        self.directory.receive_checkpoint(left.directory, self.launched_with.largest_kept_checkpoint())

    def remove(self) -> None:
        """Remove the directory. Idempotent."""
        self.directory.remove()


@contextlib.contextmanager
def _trouble_explained() -> Generator[None]:
    """A full disk, no descriptor, thread or memory left: one kind of error, with what to do."""
    try:
        yield
    except (OSError, ImportError, MemoryError) as error:  # a library that is loaded late meets such trouble, too
        text = f"the system does not give what the kernel needs: {error or type(error).__name__}"
        raise StartupFailed(text + what_to_do(text)) from error
