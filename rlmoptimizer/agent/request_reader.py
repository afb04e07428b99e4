"""What the agent asks of `evaluate_program` and `run_data`, read and checked."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlmoptimizer.agent.current_prompts import CurrentPrompts
from rlmoptimizer.agent.turns import Turns
from rlmoptimizer.errors import SelectionError, UnknownRunError
from rlmoptimizer.evaluation.run_request import Request, asked_for, run_config
from rlmoptimizer.evaluation.runs import is_cut_val
from rlmoptimizer.events import Split
from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.json_text import encode
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.dataset import Dataset, Selection, parse_selection, select
from rlmoptimizer.task.seeds import drawn_seed
from rlmoptimizer.text import brief, whole_number

__all__ = ["RequestReader", "ended_run", "names_val", "read_reuse", "visible_runs"]

_MOST_REPEATS = 100
_LONGEST_NAME = 100  # characters of what may be a split or a run id


class RequestReader:
    """Makes a `Request` of the arguments of `evaluate_program`.

    `seed` decides random samples that were asked for without a seed of their own.
    """

    def __init__(self, data: Dataset, prompts: CurrentPrompts, turns: Turns, store: RunStore, seed: int) -> None:
        self._data = data
        self._prompts = prompts
        self._turns = turns
        self._store = store
        self._seed = seed

    def read_request(
        self,
        split: Any,
        given: Mapping[str, Any],
        failed_from_run: Any,
        prompts: Any,
        repeats: Any = 1,
        reuse: Any = False,
    ) -> Request:
        """`given` are the other selectors, of which val takes none.

        Without rows, when no example failed in `failed_from_run`.

        Raises the `AgentError` that says what is wrong.
        """
        which = _read_split(split, self._data)
        repeats, reuse = _read_repeats(repeats), read_reuse(reuse)
        tried = self._prompts.current if prompts is None else self._prompts.with_changes(prompts)
        changes = None if prompts is None else dict(prompts)
        turn = self._turns.count
        if which == "val":
            rows = self._data.val or ()
            _check_whole({**given, "failed_from_run": failed_from_run}, len(rows) * repeats)
            config = run_config("val", Selection(), changes, repeats=repeats, reuse=reuse)
            return Request.whole("val", rows, tried, config, turn, repeats=repeats, reuse=reuse)
        train = self._data.train
        wanted = parse_selection(failed_from_run=failed_from_run, rows=len(train), **given)
        asked = asked_for(wanted, repeats=repeats, reuse=reuse)
        failed = None
        if wanted.failed_from_run is not None:
            failed = self._store.failed_ids(ended_run(self._store, wanted.failed_from_run).run_id)

        def draw(begun: int) -> Request:
            selection = wanted
            if wanted.sample == "random" and wanted.sample_seed is None:
                # It goes into the run's config, so that the agent can ask for the same sample again. It depends on
                # the request and on how often a run was begun for it: threads and interruptions change nothing.
                key = encode([asked, dict(tried)])
                selection = replace(wanted, sample_seed=drawn_seed(self._seed, "sample", key, begun))
            rows = select(train, selection, failed)
            config = run_config("train", selection, changes, repeats=repeats, reuse=reuse)
            return Request("train", tried, rows, train, config, asked, turn, repeats, reuse)

        request = draw(0)
        drawn = bool(request.rows) and wanted.sample == "random" and wanted.sample_seed is None
        return replace(request, draw=draw) if drawn else request


def names_val(split: Any) -> bool:
    return isinstance(split, str) and len(split) <= _LONGEST_NAME and split.strip().lower() == "val"


def visible_runs(store: RunStore) -> list[RunRecord]:
    """The runs that the agent may know of, oldest first: none on the test set."""
    return [record for record in store.runs() if record.split != "test"]


def ended_run(store: RunStore, run_id: Any) -> RunRecord:
    """The run that the agent names. Raises `UnknownRunError`, and `SelectionError` for one that it may not see yet."""
    record = None
    if isinstance(run_id, str) and len(run_id) <= _LONGEST_NAME:
        with contextlib.suppress(UnknownRunError):
            record = store.run(run_id)
    if record is None or record.split == "test":
        name = run_id[:_LONGEST_NAME] if isinstance(run_id, str) else brief(run_id, _LONGEST_NAME)
        raise UnknownRunError(name, [known.run_id for known in visible_runs(store)])
    if record.state == "running":
        raise SelectionError(f"run {run_id} is still being evaluated; ask again when it has ended")
    if is_cut_val(record):
        raise SelectionError(
            f"run {run_id} on val was cut, and val is told whole or not at all; the same call of evaluate_program "
            "goes on with the rest of it"
        )
    return record


def _check_whole(given: Mapping[str, Any], units: int) -> None:
    """Raise `SelectionError` where a part of val is asked for: that would cost all of it and give no part."""
    chosen = [name for name, value in given.items() if value is not None and value != "first"]
    if chosen:
        raise SelectionError(
            f"val always runs whole, for {units} unit{'' if units == 1 else 's'}: leave out {', '.join(chosen)}, or "
            'choose examples of split="train". Nothing was run'
        )


def _read_repeats(repeats: Any) -> int:
    number = 1 if repeats is None else whole_number(repeats)
    if number is None or not 1 <= number <= _MOST_REPEATS:
        raise SelectionError(
            f"repeats={brief(repeats)} is not valid; pass a whole number from 1 to {_MOST_REPEATS}: how often each "
            "example is evaluated"
        )
    return number


def read_reuse(reuse: Any) -> bool:
    """The argument `reuse` of a tool. Raises `SelectionError`."""
    if reuse is None or isinstance(reuse, bool):
        return bool(reuse)
    raise SelectionError(f"reuse={brief(reuse)} is not valid; pass True or False")


def _read_split(split: Any, data: Dataset) -> Split:
    name = split.strip().lower() if isinstance(split, str) and len(split) <= _LONGEST_NAME else split
    if name == "train":
        return "train"
    if name == "val" and data.val is not None:
        return "val"
    if name == "val":
        raise SelectionError('there is no validation set in this optimization; use split="train"')
    raise SelectionError(f'split must be "train" or "val", got {brief(split, 100)}')
