"""What the agent is told about its task at the start."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import dspy

from rlmoptimizer.settings import Settings
from rlmoptimizer.task.dataset import Dataset
from rlmoptimizer.task.program import read_prompts

__all__ = ["describe_steps", "describe_task"]

_DOCSTRING_CHARS = 2000  # of the program's and the metric's descriptions
_STOP_CHARS = 100  # of one text at which an LM stops
_MOST_STOPS = 16
_MODEL_CHARS = 200  # of a model's name
# Settings of an LM that decide how a step's answers turn out. Others may be keys or addresses, so none is shown.
_LIMITS: Final = (
    "max_tokens",
    "temperature",
    "stop",
    "n",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "reasoning_effort",
)
_SAME: Final = {  # other names of these
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "num_generations": "n",
    "stop_sequences": "stop",
}


def describe_steps(
    program: dspy.Module, lm: dspy.BaseLM | None = None, requests: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """One plain dict for each step, in the program's order.

    `lm` runs the predictors that have none of their own. `requests`: an example for each step that ran.
    """
    predictors: dict[str, Any] = dict(program.named_predictors())
    return [
        {
            "step": step,
            "signature_name": predictors[step].signature.__name__,
            "input_fields": _fields(predictors[step].signature.input_fields),
            "output_fields": _fields(predictors[step].signature.output_fields),
            "prompt": prompt,
            "model": _model(predictors[step], lm),
            "limits": _limits(predictors[step], lm),
            "example_request": None if requests is None or step not in requests else dict(requests[step]),
        }
        for step, prompt in read_prompts(program).items()
    ]


def describe_task(
    program: dspy.Module,
    metric: Callable[..., Any],
    data: Dataset,
    settings: Settings,
    *,
    budget: int,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Plain facts about the program, the metric, the data sets and the limits; `warnings` are sentences."""
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
        "max_turns": settings.rlm_max_iterations,
        "max_sub_lm_prompts": settings.rlm_max_llm_calls,
        "num_threads": settings.num_threads,
        "max_cost_usd": settings.max_cost_usd,
        "max_prompt_tokens": settings.max_prompt_tokens,
        "warnings": list(warnings),
    }


def _docstring(described: Any) -> str:
    # A class's own one only, and none of DSPy's classes: what a dspy.Predict is says nothing of this program.
    if inspect.isclass(described):
        text = None if described.__module__.partition(".")[0] == "dspy" else vars(described).get("__doc__")
    else:
        text = described.__doc__
    return inspect.cleandoc(text)[:_DOCSTRING_CHARS] if text else ""


def _model(predictor: Any, lm: dspy.BaseLM | None) -> str | None:
    """The name of the model that answers a step; None: not known."""
    own = getattr(predictor, "lm", None)
    name = getattr(lm if own is None else own, "model", None)
    return name[:_MODEL_CHARS] if isinstance(name, str) else None


def _limits(predictor: Any, lm: dspy.BaseLM | None) -> dict[str, Any]:
    """What decides how long the answers of a step are and how much they vary; what is not there is the provider's."""
    own = getattr(predictor, "lm", None)
    of_lm = getattr(lm if own is None else own, "kwargs", None) or {}
    found: dict[str, Any] = {}
    for settings in (of_lm, getattr(predictor, "config", None) or {}):  # the predictor's go before its LM's
        for name, value in cast("Mapping[str, Any]", settings).items():
            name = _SAME.get(name, name)
            if name in _LIMITS and (shown := _limit(value)) is not None:
                found[name] = shown
    return {name: found[name] for name in _LIMITS if name in found}


def _limit(value: Any) -> Any:
    """A setting that is plain and short; None: it is not, or it is not set."""
    if isinstance(value, str):
        return value[:_STOP_CHARS]
    if isinstance(value, (list, tuple)):
        return [item[:_STOP_CHARS] for item in cast("list[Any]", value) if isinstance(item, str)][:_MOST_STOPS]
    return value if isinstance(value, (bool, int, float)) else None


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
