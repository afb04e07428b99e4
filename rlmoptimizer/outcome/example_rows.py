"""The results of runs as the agent gets them: a plain row for each example, all at once or read in pages."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterable
from typing import Any, Final, cast

from kernel_bridge import PagedList
from rlmoptimizer.errors import SelectionError, UnknownRunError
from rlmoptimizer.records import ExampleResult, RunRecord, combined
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["PAGES_OF_RUNS", "ExampleRows"]

PAGES_OF_RUNS: Final = "rows of runs"
"""The name of `ExampleRows.read_page` among the page sources of a kernel."""

_PAGE_BYTES: Final = 2**20  # of a page, as the store has it; what is no longer is sent at once
_LONGEST_NAME: Final = 100  # characters of what may be a run id


class ExampleRows:
    """Rows of the runs in one store. Thread-safe."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store

    def whole(self, run: RunRecord, ids: Collection[str] | None = None) -> list[dict[str, Any]]:
        """All rows of a run in planned order; `ids`: only of these examples, unless it is None."""
        return _rows(self._store.examples(run.run_id, ids), run.repeats)

    def paged(self, run: RunRecord, ids: Collection[str] | None = None) -> list[dict[str, Any]] | PagedList:
        """The same for a kernel, which reads what it touches where all would be more than a page.

        It reads from the store as that is then. The examples stay those that have a result now.
        """
        count = self._store.result_count(run.run_id, ids)
        first = _rows(self._store.example_page(run.run_id, ids, 0, max(count, 1), _PAGE_BYTES), run.repeats)
        if len(first) == count:
            return first
        if count == run.planned_count:
            ids = None
        elif ids is None:
            ids = self._store.result_ids(run.run_id)
        return PagedList(PAGES_OF_RUNS, [run.run_id, None if ids is None else list(ids)], count, self.read_page)

    def read_page(self, key: Any, start: Any, stop: Any) -> list[dict[str, Any]]:
        """The rows of a page, at least one: the page source. Its arguments come from a kernel, and may be anything.

        Raises `SelectionError` unless they name rows of a run on train that has ended.
        """
        run, ids = self._named(key)
        if type(start) is not int or type(stop) is not int or not 0 <= start < stop <= run.planned_count:
            raise SelectionError(f"run {run.run_id} has no such rows; it was to have {run.planned_count}")
        rows = _rows(self._store.example_page(run.run_id, ids, start, stop - start, _PAGE_BYTES), run.repeats)
        if not rows:
            raise SelectionError(f"run {run.run_id} has no row {start} of these examples")
        return rows

    def _named(self, key: Any) -> tuple[RunRecord, list[str] | None]:
        """The run and the examples (None: all) that a key names. Raises `SelectionError`."""
        run_id, ids = (
            cast("list[Any]", key) if isinstance(key, list) and len(cast("list[Any]", key)) == 2 else (None, 0)
        )
        run = None
        if isinstance(run_id, str) and len(run_id) <= _LONGEST_NAME:
            with contextlib.suppress(UnknownRunError):
                run = self._store.run(run_id)
        if run is None or run.split != "train":
            raise SelectionError("these are no rows of a run on train")
        if run.state == "running":
            raise SelectionError(f"run {run.run_id} is being evaluated; its rows can be read again when it has ended")
        if ids is not None and not self._are_planned(run, ids):
            raise SelectionError(f"these are no examples of run {run.run_id}")
        return run, cast("list[str] | None", ids)

    def _are_planned(self, run: RunRecord, ids: Any) -> bool:
        """Whether these are examples of a run. What a kernel makes up may be longer than any query may be."""
        listed = cast("list[Any]", ids) if isinstance(ids, list) else None
        return (
            listed is not None
            and len(listed) <= run.planned_count
            and all(type(one) is str for one in listed)
            and frozenset(self._store.planned_ids(run.run_id)).issuperset(listed)
        )


def _rows(results: Iterable[ExampleResult], repeats: int) -> list[dict[str, Any]]:
    """One row for each example, whatever its rollouts are; `results` in the order in which the store gives them."""
    if repeats == 1:
        return [result.as_row() for result in results]
    examples = itertools.groupby(results, lambda result: result.example_id)
    return [combined(list(rollouts)).as_row() for _, rollouts in examples]
