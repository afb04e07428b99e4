"""A run store open to be read: runs, results, charges, prompts, turns and events, as far as they are written.

Reads beside a process that writes, takes no lock that it would wait for, and changes nothing. Values and errors of the
validation set are stored too: they are for the host only. Imports no DSPy.
"""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.store.directory import store_path, stores_in
from rlmoptimizer.store.file import StoreFile
from rlmoptimizer.store.json_text import decode
from rlmoptimizer.store.pauses import MARKS, pauses
from rlmoptimizer.store.result_reader import ResultReader
from rlmoptimizer.store.rows import from_column
from rlmoptimizer.store.spending_reader import SpendingReader
from rlmoptimizer.store.takeover_reader import TakeoverReader
from rlmoptimizer.store.turn_reader import CallReader, TurnReader

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["StoreReader"]

_WRITTEN_AT: Final = (  # where something is written down as it happens: table and column of a time
    ("events", "at"),
    ("runs", "started_at"),
    ("runs", "finished_at"),
    ("charges", "at"),
    ("lm_calls", "at"),
    ("iterations", "at"),
)


class StoreReader(ResultReader, TakeoverReader, SpendingReader, TurnReader, CallReader):
    """One store, open to be read. Use as a context manager or call `close()`. Thread-safe.

    Any method raises `StoreCorrupt` when the file cannot be read.
    """

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing store to look at it, also while another process writes to it.

        Raises `InvalidSetup` when there is none, and `StoreCorrupt` for a file that is torn, foreign or of another
        version.
        """
        return cls(StoreFile.read(Path(path)))

    @classmethod
    def open_in(cls, directory: str | Path) -> Self:
        """Open the newest store of a directory, as `open` does. Raises `InvalidSetup` when it has none."""
        numbers = stores_in(Path(directory))
        if not numbers:
            raise InvalidSetup(f"there is no run store in {directory}; name that of a compile that has begun")
        return cls.open(store_path(Path(directory), max(numbers)))

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def snapshot(self) -> AbstractContextManager[None]:
        """All that the block reads is of one moment, whatever another process writes. For a store opened to be read.

        Other threads wait with their reading.
        """
        return self._file.snapshot()

    def began_and_ended(self) -> tuple[float | None, float | None]:
        """When the optimization began and when it ended, Unix time; None: it has not."""
        rows = self._query("SELECT started_at, finished_at FROM compile")
        return rows[0] if rows else (None, None)

    def setup(self) -> dict[str, Any] | None:
        """What this store is about; None: nobody said."""
        return self._one_document("setup")

    def outcome(self) -> dict[str, Any] | None:
        """How it all ended; None: it has not."""
        return self._one_document("outcome")

    def submission(self) -> dict[str, Any] | None:
        """What the agent submitted with its last turn; None: it has not."""
        return self._one_document("submission")

    def agent_end(self) -> dict[str, Any] | None:
        """How the agent's work ended; None: it goes on."""
        return self._one_document("agent_end")

    def choice(self) -> dict[str, Any] | None:
        """Which prompts are given back, and why; None: not decided."""
        return self._one_document("choice")

    def last_written_at(self) -> float | None:
        """When something was last written down as it happened, Unix time; None: nothing ever was."""
        latest = " UNION ALL ".join(f"SELECT MAX({column}) AS at FROM {table}" for table, column in _WRITTEN_AT)
        return self._query(f"SELECT MAX(at) FROM ({latest})")[0][0]

    def worked_seconds(self) -> float:
        """How long processes have worked on this optimization, together, as far as the store can tell.

        Each from its beginning to the last thing that it wrote down, without the time in which the agent was paused.
        """
        begins = [record.at for record in self.events("CompileStarted")]
        paused_times = pauses(record for kind in MARKS for record in self.events(kind))
        written = " UNION ALL ".join(f"SELECT {column} FROM {table}" for table, column in _WRITTEN_AT)
        total = 0.0
        for begin, end in itertools.pairwise([*begins, float("inf")]):
            rows = self._query(f"SELECT max(at) FROM (SELECT 0.0 AS at UNION ALL {written}) WHERE at < ?", end)
            last = max(begin, rows[0][0])
            paused = sum(max(0.0, min(until, last) - max(since, begin)) for since, until in paused_times)
            total += last - begin - paused
        return total

    def _one_document(self, column: str) -> dict[str, Any] | None:
        rows = self._query(f"SELECT {column} FROM compile WHERE {column} IS NOT NULL")
        found: list[dict[str, Any]] = self._read(lambda row: decode(from_column(row[0])), rows)
        return found[0] if found else None
