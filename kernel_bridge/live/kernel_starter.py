"""The starter of a session's kernels, one after the other, with what each begins with.

The first kernel begins with the checkpoint file's variables, a successor with those of the last checkpoint. Where a
warm kernel is to be had, it takes that one, and its home with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from kernel_bridge.cells import Restored
from kernel_bridge.errors import SessionClosed, SessionLost
from kernel_bridge.files.checkpoint_file import CheckpointKeeper, fetch_checkpoint
from kernel_bridge.files.layout import CHECKPOINT
from kernel_bridge.live.kernel import LiveKernel
from kernel_bridge.live.kernel_home import KernelHome
from kernel_bridge.live.reply import RestoredNames
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.live.warm_kernels import WarmKernel, WarmKernels
from kernel_bridge.options import SessionOptions

__all__ = ["KernelStarter"]

_MOST_CELLS = 2**48  # that a checkpoint file is believed to have seen


class KernelStarter:
    """Starts the kernels of one session; owns their home and the copying of their checkpoints to the file.

    Args:
        checkpoint_file: see `SessionOptions`.
        given_up: why nobody wants a kernel any more, asked while one starts; None: it is still wanted.
        warm: where kernels can be had that are ready; None: nowhere.

    Raises:
        StartupFailed, ConfinementUnavailable.
    """

    def __init__(
        self,
        options: SessionOptions,
        dispatcher: ToolDispatcher,
        checkpoint_file: Path | None,
        given_up: Callable[[], str | None],
        warm: WarmKernels | None = None,
    ) -> None:
        self._options = options
        self._dispatcher = dispatcher
        self._checkpoint_file = checkpoint_file if options.checkpoint else None
        self._given_up = given_up
        self._warm = warm
        self._started = time.time()
        self.restored: Restored | None = None  # from the checkpoint file; None: there was none
        self.first_cell = 1  # the number of the first kernel's first cell
        self.keeper: CheckpointKeeper | None = None
        taken = self._take_warm()
        self._taken = None if taken is None else taken.kernel  # the next kernel, if it is there already
        self.home = KernelHome(options) if taken is None else taken.home

    def first(self) -> LiveKernel:
        """Start a kernel that begins with what is in the checkpoint file, if it can."""
        if self._checkpoint_file is None:
            return self._next()
        most_bytes = self._options.limits.checkpoint_bytes
        fetched = fetch_checkpoint(self._checkpoint_file, self._source, most_bytes)
        kernel = self._next()
        if fetched is not None:
            names = RestoredNames((), {})
            if fetched.problem is None:
                kernel, names = self._restored(kernel)
            self.restored = Restored(fetched.label, names.restored, names.lost, fetched.problem)
            # Functions know the cells they are from by number: a new cell must not take the place of one of those.
            self.first_cell = min(fetched.cell, _MOST_CELLS) + 1
        self.keeper = CheckpointKeeper(self._checkpoint_file, self._source, most_bytes)
        return kernel

    def successor(self) -> tuple[LiveKernel, RestoredNames]:
        """Start a kernel that restores the checkpoint, or, when the checkpoint itself kills it, one that does not.

        Returns the kernel, which names it has, and which it lacks and why.
        """
        self._move_to_warm()
        if self.keeper is not None:
            self.keeper.follow(self._source)
        kernel = self._next()
        return self._restored(kernel) if self._options.checkpoint else (kernel, RestoredNames((), {}))

    def stop_keeping(self) -> None:
        """Copy the checkpoint that is there already, and no more. Idempotent."""
        if self.keeper is not None:
            self.keeper.close()

    def remove(self) -> None:
        """Remove the home. Idempotent."""
        kernel, self._taken = self._taken, None
        if kernel is not None:
            kernel.close()
        self.home.remove()

    @property
    def _source(self) -> Path:
        """Where the present kernel puts its checkpoints."""
        return self.home.directory.keep / CHECKPOINT

    def _restored(self, kernel: LiveKernel) -> tuple[LiveKernel, RestoredNames]:
        """Let a kernel restore the checkpoint. One that is lost by that is replaced by one that does not."""
        try:
            return kernel, kernel.restore(self._given_up)
        except SessionLost as ended:  # restoring runs the agent's own code
            kernel.close()
            return self._next(), RestoredNames((), {"all names": f"restoring them failed: {ended.reason}"})
        except BaseException:
            kernel.close()
            raise

    def _next(self) -> LiveKernel:
        """A kernel in the present home, which other processes find from now on."""
        if (why := self._given_up()) is not None:
            raise SessionClosed(why)
        kernel, self._taken = self._taken, None
        if kernel is None:
            kernel = self.home.launch(self._dispatcher, self._given_up)
        try:
            kernel.hand_over(self._dispatcher)
            self.home.publish(kernel, self._started)
        except BaseException:
            kernel.close()
            raise
        return kernel

    def _take_warm(self) -> WarmKernel | None:
        return None if self._warm is None else self._warm.take(self._options, self._given_up)

    def _move_to_warm(self) -> None:
        """Take a warm kernel for the next one, with its home, if there is one: the last checkpoint moves there."""
        taken = self._take_warm()
        if taken is None:
            return
        try:
            if self._options.checkpoint:
                taken.home.receive_checkpoint(self.home)
        except BaseException as error:
            taken.end()  # it may have a part of it
            if not isinstance(error, (OSError, ValueError)):
                raise
            return  # such as a full disk: the next kernel starts where the checkpoint is
        left, self.home, self._taken = self.home, taken.home, taken.kernel
        left.remove()
