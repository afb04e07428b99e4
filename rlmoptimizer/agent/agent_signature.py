"""The agent's signature and its prompt."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from importlib import resources
from typing import Any, Final, cast

import dspy

from rlmoptimizer.agent.submission import SUBMISSION_FIELD

__all__ = ["agent_instructions", "agent_signature"]

_SOURCES: Final[dict[str, tuple[Any, Any]]] = {
    "program_source": (str, dspy.InputField(desc="the code of the program; it cannot be changed")),
    "metric_source": (str, dspy.InputField(desc="the code of the metric: read what it takes to score")),
}


def agent_instructions(*, sub_agents: bool = False) -> str:
    """The agent's prompt, as the package carries it. `sub_agents`: it may build some."""
    folder = resources.files("rlmoptimizer.agent") / "prompts"
    names = ("agent.md", "sub_agents.md") if sub_agents else ("agent.md",)
    return "\n\n".join((folder / name).read_text(encoding="utf-8").strip() for name in names)


def agent_signature(*, sub_agents: bool = False, share_source: bool = False) -> type[dspy.Signature]:
    """What the agent gets and what it must produce. `share_source`: it gets the sources of program and metric."""
    fields: dict[str, tuple[Any, Any]] = {
        "program_steps": (
            list[dict[str, Any]],
            dspy.InputField(desc="in order; `step` is the name that tools take, `prompt` its text at the start"),
        ),
        "baseline_runs": (
            dict[str, Any],
            dspy.InputField(desc="the program as it was given, evaluated and paid for: totals, 0 to 100"),
        ),
        "task_facts": (dict[str, Any], dspy.InputField(desc="the metric, the data sets, the budget and the limits")),
        **(_SOURCES if share_source else {}),
        "previous_trajectory": (
            list[dict[str, Any]],
            dspy.InputField(desc="your earlier turns, each with `turn`, `reasoning`, `code`, `output`; read the last"),
        ),
        "work_so_far": (
            str,
            dspy.InputField(
                desc="what was done before: go on from here, do not start over. Asking again for an evaluation "
                "that was cut goes on with it and pays only for the rest"
            ),
        ),
        SUBMISSION_FIELD: (dict[str, str], dspy.OutputField(desc="the whole prompt of every step, by step name")),
    }
    return cast("type[dspy.Signature]", dspy.Signature(fields, agent_instructions(sub_agents=sub_agents)))  # pyright: ignore[reportCallIssue]
