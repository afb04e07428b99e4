"""Which optimizations the live page shows: those of a directory by their numbers, or the one of a single file."""

from __future__ import annotations

from pathlib import Path

from rlmoptimizer.show.live_page.shown_optimization import ShownOptimization
from rlmoptimizer.store.directory import number_of, store_path

__all__ = ["Optimizations"]


class Optimizations:
    """Each is made when it is first asked for. For one thread."""

    def __init__(self, path: Path) -> None:
        """`path`: the store file of the one that is shown first."""
        number = number_of(path)
        self.first = 1 if number is None else number
        self._directory = None if number is None else path.parent  # None: the file has a name of its own
        self._shown = {self.first: ShownOptimization(path, self.first)}

    def get(self, number: int) -> ShownOptimization | None:
        """One of them; None: it is not there."""
        shown = self._shown.get(number)
        if shown is None and self._directory is not None and store_path(self._directory, number).is_file():
            shown = self._shown[number] = ShownOptimization(store_path(self._directory, number), number)
        return shown

    def close(self) -> None:
        """Idempotent."""
        for shown in self._shown.values():
            shown.close()
