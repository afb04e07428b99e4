"""What a kernel's tool channel has come to. Any thread of the channel may tell; the one that runs cells is woken."""

from __future__ import annotations

from collections.abc import Callable

from kernel_bridge.wire import Ready

__all__ = ["CLOSED", "ChannelState"]

CLOSED = "it closed its connection to its host"
"""Why a kernel is lost whose end of a socket is gone."""


class ChannelState:
    """Read by the thread that runs cells.

    Args:
        wake: called, from any thread, after each change.
        end: called, from any thread, when nothing is to be read or sent any more.
    """

    def __init__(self, wake: Callable[[], None], end: Callable[[], None]) -> None:
        self._wake = wake
        self._end = end
        self.ready: Ready | None = None  # None: the kernel has not said so yet
        self.violation: str | None = None  # what it sent that nobody agreed on
        self.lost: str | None = None  # why it cannot be talked to any more, as a clause
        self.fatal: BaseException | None = None  # an interrupt or exit that a tool raised, for the cell's caller

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be read or sent any more."""
        return self.violation is not None or self.lost is not None

    def note_ready(self, ready: Ready) -> None:
        """The kernel takes cells."""
        self.ready = ready
        self._wake()

    def violate(self, why: str) -> None:
        """The kernel broke the protocol."""
        self.violation = why
        self._end()
        self._wake()

    def lose(self, why: str) -> None:
        """The kernel cannot be talked to any more."""
        self.lost = why
        self._end()
        self._wake()

    def fail(self, error: BaseException) -> None:
        """The caller of the cell is to get this error in the place of its outcome."""
        self.fatal = error
        self._wake()
