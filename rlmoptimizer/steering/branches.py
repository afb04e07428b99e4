"""Branches: a new optimization in the same directory that begins with the prompts of any run of an earlier one.

A branch is prepared as a whole store beside its parent's, so that it is there or not, whenever a process is killed. It
begins when `compile(..., resume=True)` finds it as the newest store; only then its budget is fixed. Imports no DSPy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kernel_bridge.text import printable_line
from rlmoptimizer.errors import InvalidSetup, InvalidSetupType, StoreCorrupt, StoreInUse
from rlmoptimizer.outcome.recorded_setup import branch_in, unit_limit
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import RunRecord
from rlmoptimizer.steering.requests import Requests, checked_note
from rlmoptimizer.store.branch_copy import BranchCopy
from rlmoptimizer.store.directory import store_path, stores_in
from rlmoptimizer.store.file_lock import holder
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["awaited_parent", "begin_branch", "branch_of", "check_parent_at_rest", "prepare_branch"]

logger = logging.getLogger(__name__)

_MOST_UNITS: Final = 10**12


def prepare_branch(store: StoreReader, run_id: str, *, units: int | None = None, note: str | None = None) -> Path:
    """Make the next store in the directory, a branch whose current prompts are those of a run; gives its path.

    A parent that runs is asked to end, and the same `compile` goes on with the branch, whose agent also gets the notes
    that wait for the parent's. Else `compile(..., resume=True)` begins it. Finished runs of the unchanged prompts and
    of the run's come along, and are not paid again.

    Args:
        store: of the parent.
        units: the branch's budget; None: what the parent has left when the branch begins. Then the parent's dollars
            count for `max_cost_usd` too.
        note: a person's words for the agent's first turn.

    Raises:
        UnknownRunError: there is no such run.
        InvalidSetup: nothing is left, a value is not valid, or nothing can be written there.
    """
    setup = store.setup()
    if setup is None:
        raise InvalidSetup(f"the optimization in {store.path} has not begun, so there is nothing to branch from")
    if (unbegun := branch_in(setup)) is not None and not unbegun["begun"]:
        # What it will have left is not known: its parent may still be at work.
        raise InvalidSetup(
            f"the branch in {store.path} has not begun; begin it, or make another branch from a run of "
            f"{unbegun['store']}, from which it was made"
        )
    run = store.run(run_id)
    left = unit_limit(setup) - store.spent()
    _check_units(units, left, store.path)
    if note is not None:
        note = checked_note(note)
    is_running = holder(store.path) is not None and store.outcome() is None
    if is_running:
        Requests(store.path).check(note=note is not None)  # before anything is made
    copy = _copied(store, setup, run, units, left if units is None else units)
    with RunStore.create_in(store.path.parent, copy) as branch:
        path, requests = branch.path, Requests(branch.path)
        requests.clear()  # of an earlier one of this number, whose store somebody has removed
        # The parent's agent comes to no turn any more in which it would read the notes that wait.
        for text in [*(Requests(store.path).take_notes() if is_running else ()), *([] if note is None else [note])]:
            requests.note(text)
    if is_running:
        Requests(store.path).branch()
        if store.outcome() is not None:  # it has ended in the meantime
            Requests(store.path).clear()
    return path


def _copied(
    store: StoreReader, setup: Mapping[str, Any], run: RunRecord, units: int | None, limit: int
) -> BranchCopy:
    """What of the parent comes along."""
    original = Prompts.of(setup["student"]["steps"]).digest
    candidates = list(dict.fromkeys((original, run.candidate)))
    return BranchCopy(
        store.path,
        {**setup, "branch": _described(store, run, units, limit)},
        candidates,
        [number for number, one in enumerate(store.runs(), start=1) if _is_copied(one, candidates)],
        limit,
    )


def branch_of(path: Path) -> Path | None:
    """The branch of a store that was prepared last and has not begun; None: the newest store is none.

    Others may have put something there: what cannot be read is none, and is logged.
    """
    try:
        numbers = stores_in(path.parent)
        newest = store_path(path.parent, numbers[-1]) if numbers else path
        if newest == path:
            return None
        with StoreReader.open(newest) as store:
            branch = branch_in(store.setup())
    except (InvalidSetup, StoreCorrupt) as error:
        logger.warning("No branch of %s is gone on with: %s", path, printable_line(str(error)))
        return None
    is_its = branch is not None and branch.get("store") == path.name and branch.get("begun") is False
    return newest if is_its else None


def awaited_parent(store: StoreReader) -> Path | None:
    """Of a branch that has not begun, the store of its parent; None: it is no such branch, or none is found."""
    branch = branch_in(store.setup())
    if branch is None or branch.get("begun") is not False:
        return None
    try:
        return _parent_path(store, branch)
    except InvalidSetup:  # a directory that may be read from, but not be searched
        return None


def check_parent_at_rest(store: StoreReader) -> None:
    """Raise `StoreInUse` for a branch that has not begun while a process works on its parent."""
    parent = awaited_parent(store)
    if parent is not None and (process := holder(parent)) is not None:
        raise StoreInUse(str(parent), process or None)


def begin_branch(store: RunStore) -> None:
    """Fix the budget of a branch that begins; nothing for any other store, and for a branch that has begun.

    Raises `StoreInUse` while a process works on its parent, and `InvalidSetup` when that is gone and is needed.
    """
    setup = store.setup()
    branch = branch_in(setup)
    if setup is None or branch is None or branch["begun"]:
        return
    check_parent_at_rest(store)
    limit, before = branch["limit"], 0
    if branch["units"] is None:
        if (path := _parent_path(store, branch)) is None:
            raise InvalidSetup(
                f"{branch['store']}, from which {store.path} was branched, is gone from its directory; put it back, or "
                "begin a new optimization with resume=False"
            )
        with StoreReader.open(path) as parent:
            above = parent.setup()
            assert above is not None  # when it was branched
            limit = unit_limit(above) - parent.spent()
            earlier = branch_in(above)
            before = 0 if earlier is None else earlier["picodollars_before"]
            before += sum(usage.cost for usage in parent.lm_usage().values())
    begun = {**branch, "limit": limit, "picodollars_before": before, "begun": True}
    store.replace_setup({**setup, "branch": begun})


def _described(store: StoreReader, run: RunRecord, units: int | None, limit: int) -> dict[str, Any]:
    return {
        "store": store.path.name,
        "run_id": run.run_id,
        "prompts": dict(run.prompts),
        "units": units,
        "limit": limit,  # final once it has begun
        "picodollars_before": 0,  # that count as spent
        "begun": False,
        "run": {
            "split": run.split,
            "score": run.score,
            "evaluated_count": run.evaluated_count,
            "planned_count": run.planned_count,
        },
    }


def _is_copied(run: RunRecord, candidates: list[str]) -> bool:
    return run.state == "finished" and run.split != "test" and run.candidate in candidates


def _parent_path(store: StoreReader, branch: Mapping[str, Any]) -> Path | None:
    """None: it is gone. Only a store of the same directory can be one, whatever the setup says."""
    paths = (store_path(store.path.parent, number) for number in stores_in(store.path.parent))
    return next((path for path in paths if path.name == branch["store"]), None)


def _check_units(units: int | None, left: int, path: Path) -> None:
    if units is None:
        if left <= 0:
            raise InvalidSetup(f"the optimization in {path} has no budget left; give the branch units of its own")
        return
    if isinstance(units, bool) or not isinstance(units, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidSetupType(f"units must be a whole number or None, got {type(units).__name__}")
    if not 0 < units <= _MOST_UNITS:
        raise InvalidSetup(f"units must be from 1 to {_MOST_UNITS}, got {units}")
