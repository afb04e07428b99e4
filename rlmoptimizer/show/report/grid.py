"""The grid of the page: the score of each candidate on each example of train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from rlmoptimizer.outcome.run_totals import percent
from rlmoptimizer.outcome.split_scores import CandidateScores

__all__ = ["Grid", "GridCells", "GridEntry"]


class GridCells(TypedDict):
    """Of one candidate, only the examples that it has a score on."""

    places: list[int]  # indexes into `example_ids`, ascending
    scores: list[float]  # 0 to 100


class GridEntry(TypedDict):
    example_ids: list[str]
    cells: list[GridCells]  # by candidate


class Grid:
    """Made anew only for candidates that have new scores."""

    def __init__(self) -> None:
        self._cells: dict[str, tuple[CandidateScores, GridCells]] = {}

    def entry(
        self, example_ids: Sequence[str], candidates: Iterable[str], scores: Mapping[str, CandidateScores]
    ) -> GridEntry:
        """`candidates` in the order of the page; `scores` are theirs on train."""
        places = {example_id: place for place, example_id in enumerate(example_ids)}
        cells: list[GridCells] = []
        for candidate in candidates:
            own = scores.get(candidate)
            if own is None:
                cells.append({"places": [], "scores": []})
                continue
            known = self._cells.get(candidate)
            if known is None or known[0] is not own:
                self._cells[candidate] = known = own, _cells(own, places)
            cells.append(known[1])
        return {"example_ids": list(example_ids), "cells": cells}


def _cells(own: CandidateScores, places: Mapping[str, int]) -> GridCells:
    found = sorted((places[one], percent(score) or 0.0) for one, score in own.scores.items() if one in places)
    return {
        "places": [place for place, _ in found],
        "scores": [int(score) if score.is_integer() else score for _, score in found],
    }
