"""The namespace's keeper: it makes a checkpoint after each cell and says which names no checkpoint has."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from typing import Any

from kernel_bridge.inside import KEEPING, KEPT
from kernel_bridge.inside.checkpoint import Checkpoint

__all__ = ["NamespaceKeeper"]

_LONGEST_REASON = 300  # characters
_MOST_UNKEPT = 100  # names in one reply
_ADDRESS = re.compile("0x[0-9a-f]+", re.IGNORECASE)  # in the texts of objects: a new one in each cell is no new cause


class NamespaceKeeper:
    """Makes a checkpoint after each cell of the host, once its reply is on its way.

    Args:
        own_names: gives the names to keep.
        progress_file: shows the host whether a checkpoint is being made.
    """

    def __init__(self, checkpoint: Checkpoint, own_names: Callable[[], dict[str, Any]], progress_file: str) -> None:
        self._checkpoint = checkpoint
        self._own_names = own_names
        self._progress = os.open(progress_file, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
        self._due: int | None = None  # the cell after which a checkpoint is to be made
        self._causes: dict[str, str] = {}  # why the last checkpoint lacks which names, without addresses
        self._unkept: dict[str, str] = {}  # what of it the next reply has to say

    def expect(self, cell: int) -> None:
        """The reply of this cell is on its way, and its checkpoint due."""
        self._due = cell

    def keep(self) -> None:
        """Make the checkpoint if it is due."""
        if self._due is None:
            return
        cell, self._due = self._due, None
        self._note_progress(KEEPING, cell)
        try:
            self._note_unkept(self._checkpoint.write(self._own_names()))
        except Exception as error:  # noqa: BLE001 - a full disk, or no memory: the last good checkpoint stays
            reason = f"the checkpoint cannot be made: {type(error).__name__}: {error}"[:_LONGEST_REASON]
            self._note_unkept({"all names": reason})
        finally:
            self._note_progress(KEPT, cell)

    def _note_unkept(self, lost: dict[str, str]) -> None:
        """Remember for the next reply what the checkpoint lacks, if an earlier reply has not said it for this cause."""
        causes = {name: _ADDRESS.sub("0x", reason) for name, reason in lost.items()}
        news = {name: lost[name] for name, cause in causes.items() if self._causes.get(name) != cause}
        self._causes = causes
        self._unkept = {name: reason for name, reason in {**self._unkept, **news}.items() if name in lost}

    def take_unkept(self) -> dict[str, str]:
        """For a reply: names that the checkpoint lacks, and why, without what an earlier reply has said."""
        unkept, self._unkept = self._unkept, {}
        said = {name[:_LONGEST_REASON]: reason for name, reason in list(unkept.items())[:_MOST_UNKEPT]}
        if len(unkept) > _MOST_UNKEPT:
            said[f"{len(unkept) - _MOST_UNKEPT:,} more"] = "for such reasons"
        return said

    def _note_progress(self, state: bytes, cell: int) -> None:
        with contextlib.suppress(OSError):  # the agent's code closed it
            os.lseek(self._progress, 0, os.SEEK_SET)
            os.write(self._progress, state + b"%020d" % cell)
