"""Which examples of a run are asked for, and these examples, read a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kernel_bridge.text import printable_line, shorten_list
from rlmoptimizer.command_line.errors import WrongCall
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.records import PASSED_AT, ExampleResult, RunRecord, combined, mean
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["Selection", "examples_of", "passes", "results_of", "selected_ids"]

_AT_ONCE = 200  # examples that are held in memory, with all their texts
_MOST_NAMED = 10  # ids in a message


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for; several conditions must all hold."""

    failed: bool = False
    flipped_since: str | None = None  # a run; None: any
    ids: Sequence[str] = ()  # (): all

    @property
    def options(self) -> list[str]:
        """The options that ask for single examples."""
        asked = {"--failed": self.failed, "--flipped-since": self.flipped_since is not None, "--id": bool(self.ids)}
        return [option for option, is_asked in asked.items() if is_asked]


def selected_ids(store: StoreReader, record: RunRecord, selection: Selection) -> list[str] | None:
    """The ids of the examples of a run on train that are asked for, in the order of the run; None: all of them.

    Raises `WrongCall` for a run on another split, and `InvalidSetup` for ids that the run does not have.
    """
    if not selection.options:
        return None
    check_shown(record, selection.options)
    has = store.result_ids(record.run_id)
    found = [one for one in store.planned_ids(record.run_id) if one in has]
    if selection.ids:
        named = _named(store, record, selection.ids)
        found = [one for one in found if one in named]
    if selection.failed:
        failed = frozenset(store.failed_ids(record.run_id))
        found = [one for one in found if one in failed]
    if selection.flipped_since is not None:
        check_shown(before := store.run(selection.flipped_since), ["--flipped-since"])
        was, now = passes(store, before.run_id), passes(store, record.run_id)
        found = [one for one in found if one in was and one in now and was[one] != now[one]]
    return found


def check_shown(record: RunRecord, options: Sequence[str]) -> None:
    """Raise `WrongCall` for options that ask for examples of a run whose examples are never shown."""
    if record.split != "train":
        raise WrongCall(
            f"run {record.run_id} is on {record.split}, whose examples are never shown; leave out {', '.join(options)}"
        )


def passes(store: StoreReader, run_id: str) -> dict[str, bool]:
    """Of the examples of a run that have a verdict, whether they passed."""
    return {example_id: mean(scores) >= PASSED_AT for example_id, scores in store.scores(run_id).items()}


def results_of(
    store: StoreReader, run_id: str, ids: Sequence[str] | None, *, heads: bool = False
) -> Iterator[ExampleResult]:
    """The rollouts of the examples of a run that `ids` names (None: all), in the order of the run.

    `heads`: without what was expected, predicted and traced.
    """
    read = store.brief_examples if heads else store.examples
    if ids is None:
        for offset in itertools.count(step=_AT_ONCE):
            rows = read(run_id, offset=offset, limit=_AT_ONCE)
            if not rows:
                return
            yield from rows
    else:
        for begin in range(0, len(ids), _AT_ONCE):
            yield from read(run_id, ids[begin : begin + _AT_ONCE])


def examples_of(
    store: StoreReader, run_id: str, ids: Sequence[str] | None, *, heads: bool = False
) -> Iterator[ExampleResult]:
    """The same, with the rollouts of each example combined."""
    for _, rollouts in itertools.groupby(results_of(store, run_id, ids, heads=heads), lambda one: one.example_id):
        of_one = list(rollouts)
        yield combined(of_one) if len(of_one) > 1 else of_one[0]


def _named(store: StoreReader, record: RunRecord, ids: Sequence[str]) -> frozenset[str]:
    """The ids of the run that are meant: its own, or those that the examples have from their user."""
    known = store.result_ids(record.run_id)
    missing = set(ids) - known
    meant = set(ids) & known
    if missing:
        for example in results_of(store, record.run_id, None, heads=True):
            if example.source_example_id in missing:
                meant.add(example.example_id)
                missing.discard(example.source_example_id)
    if missing:
        names = shorten_list(sorted(printable_line(one) for one in missing), _MOST_NAMED)
        raise InvalidSetup(f"run {record.run_id} has no result of example {names}; show it without --id to see its ids")
    return frozenset(meant)
