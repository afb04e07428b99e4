"""What the baseline on train shows of the program, beside its score: requests of its steps, and what to beware of."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from kernel_bridge.text import shorten, shorten_list
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["STRAYS", "BaselineEvidence", "read_baseline"]

STRAYS: Final = (
    "the program calls steps in threads of its own without DSPy's settings: those calls are answered by another LM "
    "than the others, and are not in `steps`"
)
_PAGE: Final = 200  # examples that are read at once
_MOST_NAMES, _NAME_CHARS = 5, 100


@dataclass(frozen=True, slots=True)
class BaselineEvidence:
    """What the agent is told of it."""

    requests: dict[str, dict[str, Any]]  # step -> what its LM was sent and wrote in the first example it ran in
    warnings: tuple[str, ...]  # sentences


def read_baseline(store: StoreReader, run_id: str | None, steps: Collection[str], *, strays: bool) -> BaselineEvidence:
    """Read the run `run_id` of the unchanged program on train; None: there is none.

    `strays`: steps have been called where DSPy's settings do not reach. Raises `UnknownRunError`.
    """
    requests: dict[str, dict[str, Any]] = {}
    unnamed: dict[str, None] = {}  # as an ordered set
    partial = feedback = False
    for example in () if run_id is None else _examples(store, run_id):
        partial = partial or (example.error is None and 0.0 < example.score < 1.0)
        feedback = feedback or bool(example.feedback) or any(step.feedback for step in example.steps)
        for step in example.steps:
            if step.step_name not in steps and step.step_name.startswith("<"):
                unnamed[step.step_name] = None
            if step.request is not None and step.step_name in steps:
                requests.setdefault(step.step_name, step.request)
    warnings = [_unnamed(list(unnamed))] if unnamed else []
    if strays:
        warnings.append(STRAYS)
    if partial and not feedback:
        warnings.append(
            "the metric gives partial scores and no feedback: what a prediction lacks can only be seen by comparing it "
            "with `expected`"
        )
    return BaselineEvidence(requests, tuple(warnings))


def _examples(store: StoreReader, run_id: str) -> Iterator[ExampleResult]:
    offset = 0
    while page := store.examples(run_id, offset=offset, limit=_PAGE):
        yield from page
        offset += _PAGE


def _unnamed(names: list[str]) -> str:
    listed = shorten_list([shorten(name, _NAME_CHARS) for name in names], _MOST_NAMES)
    return (
        f"the program calls predictors that are no steps, because DSPy does not find them in it: {listed}. They are "
        "made while it runs, or kept where DSPy does not look, such as in a set or a closure. Their calls stand in "
        "`steps` once they have returned, and their prompts cannot be changed"
    )
