"""What is suspicious in the agent's prompts, told while it can still mend it. The result says the same at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from rlmoptimizer.outcome.hygiene import check_hygiene
from rlmoptimizer.outcome.words import texts_in
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["PromptReview"]

_PAGE: Final = 20  # rows that are read at once, with all that their baseline holds
_MOST_CHARS: Final = 10_000_000  # of the texts of train that are looked at; they are kept in memory
_LEAST_CHARS: Final = 50  # that a text counts for: a short one takes memory and time too


@dataclass(frozen=True, slots=True)
class _Row:
    """The texts of an example of train, by field. What is neither text nor a label is not kept: it may be large."""

    example_id: str
    inputs: Mapping[str, tuple[str, ...]]
    expected: Mapping[str, tuple[str, ...]]  # numbers too

    @classmethod
    def of(cls, example: ExampleResult) -> _Row:
        return cls(
            example.example_id,
            {name: tuple(texts_in(value)) for name, value in example.inputs.items()},
            {name: tuple(texts_in(value, numbers=True)) for name, value in example.expected.items()},
        )

    @property
    def chars(self) -> int:
        fields = (*self.inputs.values(), *self.expected.values())
        return sum(max(len(text), _LEAST_CHARS) for texts in fields for text in texts)


class PromptReview:
    """Compares prompts with those at the start and with the first rows of train, up to 10 million characters of text.

    The rows are those of the baseline. Thread-safe; prompts are looked at one after the other, as each takes memory.
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
                row = _Row.of(example)
                chars += row.chars
                if chars > _MOST_CHARS:
                    return
                yield row
            offset += _PAGE
