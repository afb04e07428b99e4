"""What the agent asks of `race_prompts`, read and checked: who races on which examples, in which rounds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from rlmoptimizer.agent.current_prompts import CurrentPrompts
from rlmoptimizer.agent.race_rule import round_ends
from rlmoptimizer.agent.request_reader import read_reuse
from rlmoptimizer.agent.turns import Turns
from rlmoptimizer.errors import SelectionError
from rlmoptimizer.evaluation.run_request import Request, asked_for, run_config
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.store.json_text import encode
from rlmoptimizer.task.dataset import Dataset, Row, Selection, parse_selection, select
from rlmoptimizer.task.seeds import drawn_seed
from rlmoptimizer.text import brief, whole_number

__all__ = ["Candidate", "RaceReader", "RaceRequest"]

_MOST: Final = 32  # candidates


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the prompts that race."""

    index: int  # its place in the agent's list
    prompts: Prompts  # of every step
    changes: Mapping[str, str] | None  # as the agent gave them; None: the current prompts


@dataclass(frozen=True, slots=True)
class RaceRequest:
    """One race that was asked for."""

    candidates: tuple[Candidate, ...]
    keep: int  # the race ends when so many are left
    rounds: tuple[tuple[Row, ...], ...]  # the examples that each round adds, disjoint
    source: tuple[Row, ...]  # all of train
    selection: Selection
    turn: int
    reuse: bool  # verdicts that earlier runs have on the same prompts are taken from the store

    @property
    def examples(self) -> int:
        """How many examples a candidate runs that stays to the end."""
        return sum(map(len, self.rounds))

    def request(self, candidate: Candidate, number: int) -> Request:
        """The run of a candidate in a round, 0-based. The same race asked for again makes the same requests."""
        rows = self.rounds[number]
        chosen = Selection(ids=tuple((int(row.example_id), int(row.example_id)) for row in rows))
        config = {**run_config("train", chosen, candidate.changes, reuse=self.reuse), "race_round": number + 1}
        asked = {**asked_for(self.selection, repeats=1, reuse=self.reuse), "race_round": number + 1}
        return Request(
            "train",
            candidate.prompts,
            rows,
            self.source,
            config,
            asked,
            self.turn,
            reuse=self.reuse,
            later_round=number > 0,
        )


class RaceReader:
    """Makes a `RaceRequest` of the arguments of `race_prompts`.

    `seed` decides in which order the examples come, and random samples that were asked for without a seed of their own:
    the same call draws the same ones, so that one that was cut goes on.
    """

    def __init__(self, data: Dataset, prompts: CurrentPrompts, turns: Turns, seed: int) -> None:
        self._data = data
        self._prompts = prompts
        self._turns = turns
        self._seed = seed

    def read(self, candidates: Any, given: Mapping[str, Any], keep: Any, reuse: Any) -> RaceRequest:
        """`given` are the selectors. Raises `SelectionError`, or `PromptUpdateError` that names the candidate."""
        reused = read_reuse(reuse)
        racing = self._candidates(candidates)
        kept = 1 if keep is None else whole_number(keep)
        if kept is None or not 1 <= kept < len(racing):
            most = len(racing) - 1
            fits = "1, as two race" if most == 1 else f"a whole number from 1 to {most}"
            raise SelectionError(f"keep={brief(keep)} is not valid; the race ends when so many are left: pass {fits}")
        train = self._data.train
        selection = parse_selection(**given, rows=len(train))
        if selection.sample == "random" and selection.sample_seed is None:
            drawn = drawn_seed(self._seed, "race", encode(selection.as_config()))
            selection = replace(selection, sample_seed=drawn)
        rounds = self._rounds(select(train, selection))
        return RaceRequest(racing, kept, rounds, train, selection, self._turns.count, reused)

    def _rounds(self, rows: Sequence[Row]) -> tuple[tuple[Row, ...], ...]:
        # In an order of chance: data may be sorted, and the first of it would say nothing of the rest.
        order = list(rows)
        random.Random(drawn_seed(self._seed, "race order", *(row.example_id for row in rows))).shuffle(order)
        ends = round_ends(len(order))
        return tuple(
            tuple(sorted(order[begin:end], key=lambda row: int(row.example_id)))
            for begin, end in zip((0, *ends), ends, strict=False)
        )

    def _candidates(self, given: Any) -> tuple[Candidate, ...]:
        if not isinstance(given, (list, tuple)):
            raise SelectionError(
                f"candidates must be a list of {{step: text}}, got {type(given).__name__}; None or {{}} in it is the "
                "current prompts"
            )
        listed = cast("Sequence[Any]", given)
        if not 2 <= len(listed) <= _MOST:
            raise SelectionError(f"got {len(listed):,} candidate{'' if len(listed) == 1 else 's'}; pass 2 to {_MOST}")
        current = self._prompts.current
        racing: dict[str, Candidate] = {}
        for index, changes in enumerate(listed):
            prompts = current if changes is None else self._prompts.with_changes(changes, f"candidates[{index}]")
            if (same := racing.get(prompts.digest)) is not None:
                raise SelectionError(f"candidates[{same.index}] and candidates[{index}] are the same prompts; pass one")
            racing[prompts.digest] = Candidate(index, prompts, None if changes is None else dict(changes))
        return tuple(racing.values())
