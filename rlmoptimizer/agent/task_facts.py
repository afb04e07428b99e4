"""What the agent is told about its task at the start."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import dspy

from rlmoptimizer.task.dataset import Dataset
from rlmoptimizer.task.program import read_prompts

__all__ = ["describe_steps", "describe_task"]

_DOCSTRING_CHARS = 2000  # of the program's and the metric's descriptions


def describe_steps(program: dspy.Module) -> list[dict[str, Any]]:
    """One plain dict for each step, in the program's order."""
    signatures: dict[str, Any] = {name: predictor.signature for name, predictor in program.named_predictors()}
    return [
        {
            "step": step,
            "signature_name": signatures[step].__name__,
            "input_fields": _fields(signatures[step].input_fields),
            "output_fields": _fields(signatures[step].output_fields),
            "prompt": prompt,
        }
        for step, prompt in read_prompts(program).items()
    ]


def describe_task(
    program: dspy.Module,
    metric: Callable[..., Any],
    data: Dataset,
    *,
    budget: int,
    num_threads: int,
    max_turns: int,
    max_llm_calls: int,
    max_cost_usd: float | None = None,
    max_prompt_tokens: int | None = None,
) -> dict[str, Any]:
    """Plain facts about the program, the metric, the data sets and the limits."""
    inner = metric.func if isinstance(metric, functools.partial) else metric
    described = inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner)
    return {
        "program": type(program).__name__,
        "program_description": _docstring(type(program)),
        "metric": described.__name__,
        "metric_description": _docstring(described),
        "train_examples": len(data.train),
        "val_examples": len(data.val or ()),
        "budget": budget,
        "max_turns": max_turns,
        "max_sub_lm_prompts": max_llm_calls,
        "num_threads": num_threads,
        "max_cost_usd": max_cost_usd,
        "max_prompt_tokens": max_prompt_tokens,
    }


def _docstring(described: Any) -> str:
    # A class's own one only: without, `__doc__` would be found on dspy.Module and describe nothing of the program.
    text = vars(described).get("__doc__") if inspect.isclass(described) else described.__doc__
    return inspect.cleandoc(text)[:_DOCSTRING_CHARS] if text else ""


def _fields(fields: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "type": _type_name(field.annotation), "description": _description(name, field)}
        for name, field in fields.items()
    ]


def _type_name(annotation: Any) -> str:
    # list[int] passes for a class on Python 3.10.
    plain = inspect.isclass(annotation) and not getattr(annotation, "__args__", ())
    return annotation.__name__ if plain else str(annotation).replace("typing.", "")


def _description(name: str, field: Any) -> str:
    text = (field.json_schema_extra or {}).get("desc") or ""
    return "" if text == f"${{{name}}}" else str(text)
