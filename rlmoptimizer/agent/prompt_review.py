"""What is suspicious in the agent's prompts, told while it can still mend it. The result says the same at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rlmoptimizer.outcome.hygiene import check_hygiene
from rlmoptimizer.outcome.words import texts_in
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["PromptReview"]

_PAGE: Final = 200  # rows that are read at once
_MOST_CHARS: Final = 10_000_000  # of the texts of train that are looked at; they are kept in memory


@dataclass(frozen=True, slots=True)
class _Row:
    """An example of train, without what a program made of it."""

    example_id: str
    inputs: Mapping[str, Any]
    expected: Mapping[str, Any]

    @property
    def chars(self) -> int:
        return sum(map(len, (*texts_in(self.inputs), *texts_in(self.expected))))


class PromptReview:
    """Compares prompts with those at the start and with the first rows of train, up to 10 million characters of text.

    The rows are those of the baseline. Thread-safe.
    """

    def __init__(self, store: StoreReader, original: Prompts) -> None:
        self._store = store
        self._original = original
        self._lock = threading.Lock()  # of all that follows
        self._rows: list[_Row] | None = None
        self._seen: set[str] = set()  # digests of prompts

    def news(self, prompts: Prompts) -> tuple[str, ...]:
        """Sentences, the gravest first; () when all is well, and for prompts that were looked at before."""
        with self._lock:
            if prompts.digest in self._seen:
                return ()
            self._seen.add(prompts.digest)
            if self._rows is None:
                self._rows = list(self._read_rows())
            return check_hygiene(self._original, prompts, self._rows).warnings

    def _read_rows(self) -> Iterator[_Row]:
        baseline = next((run for run in self._store.runs() if run.baseline and run.split == "train"), None)
        if baseline is None:
            return
        offset = chars = 0
        while page := self._store.examples(baseline.run_id, offset=offset, limit=_PAGE):
            for example in page:
                row = _Row(example.example_id, example.inputs, example.expected)
                chars += row.chars
                if chars > _MOST_CHARS:
                    return
                yield row
            offset += _PAGE
