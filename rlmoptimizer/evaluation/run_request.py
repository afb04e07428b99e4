"""A request for an evaluation, as a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from rlmoptimizer.events import Split
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.task.dataset import Row, Selection

__all__ = ["Request", "asked_for", "run_config"]

_PURPOSES: Final[dict[Split, str]] = {"train": "evaluate", "val": "validate", "test": "test"}


@dataclass(frozen=True, slots=True)
class Request:
    """One evaluation that was asked for."""

    split: Split
    prompts: Prompts
    rows: tuple[Row, ...]  # the examples chosen, in order
    source: tuple[Row, ...]  # the whole split
    config: Mapping[str, Any]  # what was chosen, as the agent gets it back
    asked: Mapping[str, Any]  # what was asked, before anything was drawn; a cut run is found again by it
    turn: int = 0  # of the agent; 0: before the first
    repeats: int = 1  # rollouts of each example, >= 1
    reuse: bool = False  # verdicts that earlier runs have on the same prompts are taken from the store
    charged_as: str | None = None  # the purpose of what is spent on it; None: by the split
    later_round: bool = False  # of a race that has begun: it is not refused because many runs have cost nothing
    # What it comes to in the run that begins after so many runs of the same request. None: nothing is left to chance.
    draw: Callable[[int], Request] | None = None

    @classmethod
    def whole(
        cls,
        split: Split,
        rows: tuple[Row, ...],
        prompts: Prompts,
        config: Mapping[str, Any] | None = None,
        turn: int = 0,
        *,
        repeats: int = 1,
        reuse: bool = False,
    ) -> Request:
        """A whole split. `config` None: with the prompts that are set."""
        if config is None:
            config = run_config(split, Selection(), None, repeats=repeats, reuse=reuse)
        asked = asked_for(Selection(), repeats=repeats, reuse=reuse)
        return cls(split, prompts, rows, rows, config, asked, turn, repeats, reuse)

    @property
    def rollouts(self) -> tuple[Row, ...]:
        """Its rows in the order of the work: each once, then, with repeats, all of them again."""
        return tuple(replace(row, rollout=number) for number in range(self.repeats) for row in self.rows)

    @property
    def purpose(self) -> str:
        """Of what is spent on it."""
        return self.charged_as or _PURPOSES[self.split]


def asked_for(selection: Selection, *, repeats: int, reuse: bool) -> dict[str, Any]:
    """What a run that was cut is found again by, beside its split and prompts."""
    return {**selection.as_config(), "repeats": repeats, "reuse": reuse}


def run_config(
    split: Split,
    selection: Selection,
    changes: Mapping[str, str] | None,
    *,
    repeats: int = 1,
    reuse: bool = False,
) -> dict[str, Any]:
    """What a run was asked to be, in the words of `evaluate_program`; `changes` are its `prompts`."""
    return {
        "split": split,
        **asked_for(selection, repeats=repeats, reuse=reuse),
        "prompts": None if changes is None else dict(changes),
    }
