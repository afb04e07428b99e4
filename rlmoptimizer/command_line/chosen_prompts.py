"""Which prompts of an optimization are asked for: the baseline's, the result's, the best measured ones, or a run's."""

from __future__ import annotations

from dataclasses import dataclass

from rlmoptimizer.command_line.run_table import steps_before
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.outcome.ending import Choice
from rlmoptimizer.outcome.measured import whole_scores
from rlmoptimizer.outcome.recorded_setup import split_sizes
from rlmoptimizer.prompts import changed_steps
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["ChosenPrompts"]


@dataclass(frozen=True, slots=True)
class ChosenPrompts:
    """The prompts of every step, and what they are in words."""

    prompts: dict[str, str]
    said: str

    @classmethod
    def of_run(cls, store: StoreReader, run_id: str) -> ChosenPrompts:
        """Raises `UnknownRunError`."""
        return cls._of(store, store.run(run_id).prompts, f"the prompts of run {run_id}")

    @classmethod
    def baseline(cls, store: StoreReader) -> ChosenPrompts:
        """Those of the unchanged program. Raises `InvalidSetup` as long as they are not recorded."""
        setup = store.setup()
        if setup is None:
            raise InvalidSetup(f"the optimization in {store.path} has just begun, and its prompts are not recorded yet")
        return cls(setup["student"]["steps"], "the prompts of the unchanged program")

    @classmethod
    def result(cls, store: StoreReader) -> ChosenPrompts:
        """Those that the optimization gave back. Raises `InvalidSetup` before it has."""
        choice = Choice.of(store)
        if choice is None:
            raise InvalidSetup("the optimization has no result yet; --best gives the best prompts so far")
        return cls._of(store, choice.prompts, "the prompts that the optimization gave back")

    @classmethod
    def best(cls, store: StoreReader) -> ChosenPrompts:
        """Those with the best mean score on the whole of val, or of train where there is no val.

        Raises `InvalidSetup` as long as there are none that have a score on all of its examples.
        """
        setup = store.setup()
        sizes = {} if setup is None else split_sizes(setup)
        split = "val" if "val" in sizes else "train"
        whole = whole_scores(store, split, sizes.get(split, 0))
        best = max(whole, key=whole.__getitem__, default=None)
        if best is None:
            raise InvalidSetup(f"no prompts have a score on all of {split} yet; --baseline gives the first ones")
        prompts = next(record.prompts for record in store.candidates() if record.candidate == best)
        return cls._of(store, prompts, f"the prompts with the best score on {split}, {100 * whole[best]:.2f}")

    @classmethod
    def newest(cls, store: StoreReader) -> ChosenPrompts:
        """The result; before there is one the best so far, and before that the baseline's."""
        for choose in (cls.result, cls.best):
            try:
                return choose(store)
            except InvalidSetup:
                continue
        return cls.baseline(store)

    @classmethod
    def _of(cls, store: StoreReader, prompts: dict[str, str], said: str) -> ChosenPrompts:
        is_changed = changed_steps(prompts, steps_before(store))
        return cls(prompts, said if is_changed else f"{said}: those of the unchanged program")
