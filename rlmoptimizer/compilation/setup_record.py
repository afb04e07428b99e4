"""The setup of an optimization as it is stored: what a resume must find the same, and how two of them differ.

It holds digests of examples, never their values.
"""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import dspy

from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.task.dataset import Row
from rlmoptimizer.task.digests import value_digest
from rlmoptimizer.task.program import fingerprints, read_prompts

__all__ = ["check_student", "describe_setup", "differences", "metric_name", "scored_split"]

_MOST_NAMED: Final = 20  # examples that an error counts up
# Settings that decide what the agent does and what a score means. Others may be changed to go on with: how long things
# may take (`example_timeout`, `max_seconds`), when the result is good enough (`target_score`, `patience`), threads.
_COMPARED: Final = (
    "rlm_max_iterations",
    "rlm_max_llm_calls",
    "rlm_max_output_chars",
    "root_stateful_session",
    "rlm_multiturn_history",
    "sub_agents",
    "max_cost_usd",
    "seed",
    "perfect_score",
    "share_source",
    "max_prompt_tokens",
)

Document = dict[str, Any]


def describe_setup(setup: Setup, *, drawn_seed: int) -> Document:
    """All that decides what an optimization does, as plain values; `drawn_seed` is the seed used, and not compared."""
    settings = setup.settings
    lms = {"root_lm": settings.root_lm, "sub_lm": settings.sub_or_root_lm, "eval_lm": setup.eval_lm}
    return {
        "student": {"modules": fingerprints(setup.student), "steps": read_prompts(setup.student)},
        "trainset": _examples(setup.data.train),
        "valset": None if setup.data.val is None else _examples(setup.data.val),
        "testset": None if setup.test is None else _examples(setup.test),
        "metric": metric_name(setup.metric),
        "settings": {
            "max_iterations": settings.iterations,
            **{name: getattr(settings, name) for name in _COMPARED},
            "root_adapter": type(settings.root_adapter or dspy.ChatAdapter()).__name__,
            **{name: _model_name(lm) for name, lm in lms.items()},
        },
        "drawn_seed": drawn_seed,
    }


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not the same in two setups, one line each, without any value of an example. []: nothing."""
    found = _student_differences(was["student"], now["student"])
    for name in ("trainset", "valset", "testset"):
        found += _data_differences(name, was[name], now[name])
    before, after = ({"metric": setup["metric"], **setup["settings"]} for setup in (was, now))
    # A setting that was not there yet when the store was made says nothing.
    return found + [
        f"{name} was {before[name]!r}, is {value!r}"
        for name, value in after.items()
        if before.get(name, value) != value
    ]


def check_student(setup: Mapping[str, Any], student: dspy.Module) -> None:
    """Raise `InvalidSetup` unless prompts found for the student of `setup` fit this one."""
    was = setup["student"]
    if found := _structure_differences(was, {"modules": fingerprints(student), "steps": read_prompts(student)}):
        raise InvalidSetup(f"this is another student than the one that was optimized: {'; '.join(found)}")


def scored_split(setup: Mapping[str, Any]) -> tuple[str, int]:
    """The split by which candidates are compared, and the number of its examples."""
    split = "train" if setup["valset"] is None else "val"
    return split, len(setup[f"{split}set"]["digests"])


def metric_name(metric: Any) -> str:
    """Module and name of a metric; of an object that is called, those of its class. Equal in every process."""
    if isinstance(metric, functools.partial):
        given = [*("..." for _ in metric.args), *(f"{name}=..." for name in sorted(metric.keywords))]
        return f"partial({', '.join([metric_name(metric.func), *given])})"
    named = metric if hasattr(metric, "__qualname__") else type(metric)
    return f"{named.__module__}.{named.__qualname__}"


def _model_name(lm: dspy.BaseLM | None) -> str | None:
    return None if lm is None else str(getattr(lm, "model", None) or type(lm).__qualname__)


def _examples(rows: Sequence[Row]) -> Document:
    return {"digests": [value_digest([row.example, sorted(row.example.inputs().keys())]) for row in rows]}


def _student_differences(was: Document, now: Document) -> list[str]:
    reworded = [step for step, text in now["steps"].items() if was["steps"].get(step, text) != text]
    found = [f"student: other instructions in {_names(reworded)}"] if reworded else []
    return _structure_differences(was, now) + found


def _structure_differences(was: Document, now: Document) -> list[str]:
    modules, had = now["modules"], was["modules"]
    kinds = {
        "is new": [path for path in modules if path not in had],
        "is gone": [path for path in had if path not in modules],
        "differs in more than its instructions": [
            path for path, mark in modules.items() if path in had and had[path] != mark
        ],
    }
    found = [f"student: {path!r} {kind}" for kind, paths in kinds.items() for path in paths[:_MOST_NAMED]]
    if not found and list(was["steps"]) != list(now["steps"]):
        found.append(f"student: its steps were {_names(list(was['steps']))}, are {_names(list(now['steps']))}")
    if not found and list(modules) != list(had):
        found.append("student: its modules are in another order")
    return found


def _data_differences(name: str, was: Document | None, now: Document | None) -> list[str]:
    if was is None or now is None:
        return [] if was is now else [f"{name} was {_size(was)}, is {_size(now)}"]
    before, after = was["digests"], now["digests"]
    if len(before) != len(after):
        return [f"{name} had {_size(was)}, has {_size(now)}"]
    if before == after:
        return []
    if sorted(before) == sorted(after):
        return [f"{name}: the same {_size(now)} in another order"]
    places = [place for place, (one, other) in enumerate(zip(before, after, strict=True), start=1) if one != other]
    if len(places) == 1:
        return [f"{name}: example {places[0]} differs (of {len(after)})"]
    more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
    return [f"{name}: examples {', '.join(map(str, places[:_MOST_NAMED]))}{more} differ (of {len(after)})"]


def _size(examples: Document | None) -> str:
    if examples is None:
        return "None"
    count = len(examples["digests"])
    return f"{count} example{'' if count == 1 else 's'}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
