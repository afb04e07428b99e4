"""The starter of a session's kernels, one after the other in one directory, with what each begins with.

The first kernel begins with the checkpoint file's variables, a successor with those of the last checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

from kernel_bridge.cells import Restored
from kernel_bridge.confine import resolve
from kernel_bridge.errors import SessionClosed, SessionLost, StartupFailed, what_to_do
from kernel_bridge.files.checkpoint_file import CheckpointKeeper, fetch_checkpoint
from kernel_bridge.files.layout import CHECKPOINT
from kernel_bridge.files.live_sessions import sweep
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.live.kernel import LiveKernel
from kernel_bridge.live.reply import RestoredNames
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.options import SessionOptions
from kernel_bridge.process.launch import LaunchOptions

__all__ = ["KernelStarter"]

_MOST_CELLS = 2**48  # that a checkpoint file is believed to have seen


class KernelStarter:
    """Starts the kernels of one session; owns their directory and the copying of their checkpoints to the file.

    Args:
        checkpoint_file: see `SessionOptions`.
        given_up: why nobody wants a kernel any more, asked while one starts; None: it is still wanted.

    Raises:
        StartupFailed, ConfinementUnavailable.
    """

    def __init__(
        self,
        options: SessionOptions,
        dispatcher: ToolDispatcher,
        checkpoint_file: Path | None,
        given_up: Callable[[], str | None],
    ) -> None:
        self._dispatcher = dispatcher
        self._checkpoint_file = checkpoint_file if options.checkpoint else None
        self._given_up = given_up
        self.restored: Restored | None = None  # from the checkpoint file; None: there was none
        self.first_cell = 1  # the number of the first kernel's first cell
        self.keeper: CheckpointKeeper | None = None
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

    def first(self) -> LiveKernel:
        """Start a kernel that begins with what is in the checkpoint file, if it can."""
        if self._checkpoint_file is None:
            return self._start()
        most_bytes = self.launched_with.session.limits.checkpoint_bytes
        source = self.directory.keep / CHECKPOINT
        fetched = fetch_checkpoint(self._checkpoint_file, source, most_bytes)
        kernel = self._start()
        if fetched is not None:
            names = RestoredNames((), {})
            if fetched.problem is None:
                kernel, names = self._restored(kernel)
            self.restored = Restored(fetched.label, names.restored, names.lost, fetched.problem)
            # Functions know the cells they are from by number: a new cell must not take the place of one of those.
            self.first_cell = min(fetched.cell, _MOST_CELLS) + 1
        self.keeper = CheckpointKeeper(self._checkpoint_file, source, most_bytes)
        return kernel

    def successor(self) -> tuple[LiveKernel, RestoredNames]:
        """Start a kernel that restores the checkpoint, or, when the checkpoint itself kills it, one that does not.

        Returns the kernel, which names it has, and which it lacks and why.
        """
        kernel = self._start()
        return self._restored(kernel) if self.launched_with.session.checkpoint else (kernel, RestoredNames((), {}))

    def _restored(self, kernel: LiveKernel) -> tuple[LiveKernel, RestoredNames]:
        """Let a kernel restore the checkpoint. One that is lost by that is replaced by one that does not."""
        try:
            return kernel, kernel.restore(self._given_up)
        except SessionLost as ended:  # restoring runs the agent's own code
            kernel.close()
            return self._start(), RestoredNames((), {"all names": f"restoring them failed: {ended.reason}"})
        except BaseException:
            kernel.close()
            raise

    def _start(self) -> LiveKernel:
        if (why := self._given_up()) is not None:
            raise SessionClosed(why)
        with _trouble_explained():
            return LiveKernel(self.directory, self.launched_with, self._dispatcher, self._given_up)

    def stop_keeping(self) -> None:
        """Copy the checkpoint that is there already, and no more. Idempotent."""
        if self.keeper is not None:
            self.keeper.close()

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
