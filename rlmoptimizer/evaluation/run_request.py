"""A request for an evaluation, as a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlmoptimizer.events import Split
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.task.dataset import Row, Selection

__all__ = ["Request", "run_config"]

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
    charged_as: str | None = None  # the purpose of what is spent on it; None: by the split
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
    ) -> Request:
        """A whole split. `config` None: with the prompts that are set."""
        config = run_config(split, Selection(), None) if config is None else config
        return cls(split, prompts, rows, rows, config, Selection().as_config(), turn)

    @property
    def purpose(self) -> str:
        """Of what is spent on it."""
        return self.charged_as or _PURPOSES[self.split]


def run_config(
    split: Split, selection: Selection, changes: Mapping[str, str] | None, ignored: Sequence[str] = ()
) -> dict[str, Any]:
    """What a run was asked to be, in the words of `evaluate_program`; `changes` are its `prompts`."""
    return {
        "split": split,
        **selection.as_config(),
        "prompts": None if changes is None else dict(changes),
        "ignored": list(ignored),
    }
