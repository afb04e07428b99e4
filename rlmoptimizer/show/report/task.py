"""What was optimized and how, as the page shows it: the task, its settings, what confines the kernel, how to repeat it.

It holds no digest of an example.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypedDict

from rlmoptimizer.outcome.recorded_setup import SPLITS, branch_in, split_sizes
from rlmoptimizer.records import EventRecord
from rlmoptimizer.show.report.json_values import as_json

__all__ = ["ConfinementEntry", "TaskEntry", "confinement", "repeat_lines", "task_entry", "title"]

_SHOWN_STEPS = 4
_BRANCH_KEYS: Final = ("store", "run_id", "units", "begun")
_OPTIMIZER_SETTINGS = (  # of the recorded ones, those that the constructor takes as they are
    "max_iterations", "rlm_max_iterations", "rlm_max_llm_calls", "rlm_max_output_chars", "root_stateful_session",
    "rlm_multiturn_history", "sub_agents", "max_cost_usd", "perfect_score", "share_source", "max_prompt_tokens",
)  # fmt: skip


class TaskEntry(TypedDict):
    steps: list[str]
    metric: str
    splits: dict[str, int | None]  # "train", "val" and "test": their examples; None: there is no such split
    settings: dict[str, Any]
    branch: dict[str, Any] | None  # `_BRANCH_KEYS` of what it was branched from, and more; None: it is no branch


class ConfinementEntry(TypedDict):
    tier: str | None  # a key of `kernel_bridge.confine.TIERS`; None: not confined, or the interpreter does not say
    summary: str
    in_force: dict[str, str]  # guarantee -> the mechanism that gives it
    missing: dict[str, str]  # guarantee -> why it is not given
    requested: list[str]  # guarantees that had to hold


def title(setup: Mapping[str, Any]) -> str:
    steps = list(setup["student"]["steps"])
    shown = steps[:_SHOWN_STEPS]
    if len(steps) > _SHOWN_STEPS:
        return f"Optimization of {', '.join(shown)} and {len(steps) - _SHOWN_STEPS} more steps"
    return f"Optimization of {' and '.join([', '.join(shown[:-1]), shown[-1]] if shown[1:] else shown)}"


def task_entry(setup: Mapping[str, Any], is_parent_at_work: bool) -> TaskEntry:
    """`is_parent_at_work`: a branch that has not begun does so as soon as its parent has ended."""
    sizes, branch = split_sizes(setup), branch_in(setup)
    if branch is not None:
        known = as_json({key: branch.get(key) for key in _BRANCH_KEYS})
        branch = {**known, "begins_by_itself": is_parent_at_work}
    return {
        "steps": list(setup["student"]["steps"]),
        "metric": setup["metric"],
        "splits": {split: sizes.get(split) for split in SPLITS},
        "settings": as_json({**setup["settings"], "seed": setup["drawn_seed"]}),
        "branch": branch,
    }


def confinement(events: Iterable[EventRecord]) -> ConfinementEntry | None:
    """Of the agent's newest kernel; None: none has started."""
    data = next((event.data for event in reversed(list(events)) if event.kind == "KernelStarted"), None)
    if data is None:
        return None
    return {
        "tier": data["tier"],
        "summary": data["summary"],
        "in_force": dict(data["in_force"]),
        "missing": dict(data["missing"]),
        "requested": list(data["requested"]),
    }


def repeat_lines(setup: Mapping[str, Any], versions: Mapping[str, str], store: Path) -> list[str]:
    """Python's lines that do the same again, as far as the store knows it."""
    settings, sizes = setup["settings"], split_sizes(setup)
    words = (("rlmoptimizer", "RLMOptimizer "), ("dspy", "DSPy "), ("python", "Python "), ("os", ""))
    known = ", ".join(f"{word}{versions[name]}" for name, word in words if name in versions)
    lines = [f"# {known}"] if known else []
    lines.append("# of each LM only the name of its model is recorded: give it its other arguments too")
    lines.append("optimizer = RLMDocstringOptimizer(")
    for name in ("root_lm", "sub_lm", "eval_lm"):
        if settings.get(name) is not None:
            lines.append(f"    {name}=dspy.LM({settings[name]!r}),")
    if "root_adapter" in settings:
        lines.append(f"    root_adapter=dspy.{settings['root_adapter']}(),")
    lines += [f"    {name}={settings[name]!r}," for name in _OPTIMIZER_SETTINGS if name in settings]
    lines += [f"    seed={setup['drawn_seed']!r},", f"    run_storage_dir={str(store.parent)!r},", ")"]
    data = ", ".join(f"{split}set={split}set" for split in SPLITS if split in sizes)
    counts = ", ".join(f"{count} of {split}" for split, count in sizes.items())
    lines.append(f"optimizer.compile(student, {data}, metric={setup['metric']})  # examples: {counts}")
    return lines
