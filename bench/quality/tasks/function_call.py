"""Call the right function with the right arguments. Questions are the Berkeley Function Calling Leaderboard's.

Hard in it: the form of a call stands nowhere in the program, several functions of a question are near, names have dots,
numbers have units, and a list is not a string. A good prompt gives the form by examples, says to copy the names of
function and parameters, and to leave out what the question does not speak of.
"""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path
from typing import Any

import dspy

from quality.task import Task
from quality.tasks.parts import data_folder, hand_written, split, step, text

FILES = ("BFCL_v4_simple_python.json", "BFCL_v4_multiple.json")
MOST_CHARACTERS = 700  # of the functions of a question: longer ones take a small model seconds to read


class CallFunction(dspy.Signature):
    """Answer the question with a function."""

    functions: str = dspy.InputField()
    question: str = dspy.InputField()
    call: str = dspy.OutputField()


class FunctionCall(dspy.Module):
    """One step."""

    def __init__(self) -> None:
        super().__init__()
        self.call = step(CallFunction, 80)

    def forward(self, functions: str, question: str) -> dspy.Prediction:
        return self.call(functions=functions, question=question)


def metric(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: object = None,
    pred_name: str | None = None,
    pred_trace: object = None,
) -> dspy.Prediction:
    """0.2 for a call of the right function, the rest by the share of right arguments; 0 for anything else."""
    given = text(prediction.call)
    [(name, accepted)] = example.accepted.items()
    arguments = _arguments(given, name)
    if isinstance(arguments, str):
        return dspy.Prediction(score=0.0, feedback=f"{arguments} It was {given[:100]!r}.")
    wrong: list[str] = []
    for parameter, values in accepted.items():
        if parameter not in arguments:
            if "" not in values:  # the data's sign that it may be left out
                wrong.append(f"{parameter} is missing")
        elif not any(_equal(arguments[parameter], value) for value in values):
            wrong.append(f"{parameter} must be {values[0]!r}, not {arguments[parameter]!r}")
    wrong += [f"there is no parameter {parameter}" for parameter in arguments if parameter not in accepted]
    share = max(0.0, 1 - len(wrong) / max(1, len(accepted)))
    feedback = f"Wrong arguments: {'; '.join(wrong)}." if wrong else "Right."
    return dspy.Prediction(score=0.2 + 0.8 * share, feedback=feedback)


def _arguments(given: str, name: str) -> dict[str, Any] | str:
    """The arguments of a call of this function, or what is wrong with it."""
    form = f"It must be one Python call of {name} with named arguments and nothing else."
    try:
        call = ast.parse(given, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return form
        called = ast.unparse(call.func)
        if called != name:
            return f"The right function is {name}, not {called[:60]}."
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return form


def _equal(given: Any, accepted: Any) -> bool:
    """Equal as the leaderboard compares: words without regard to case and punctuation; a list by its members."""
    if isinstance(given, str) and isinstance(accepted, str):
        return _plain(given) == _plain(accepted)
    if isinstance(given, list | tuple) and isinstance(accepted, list | tuple):
        return len(given) == len(accepted) and all(
            _equal(one, other) for one, other in zip(given, accepted, strict=True)
        )
    if isinstance(given, dict) and isinstance(accepted, dict):
        # In a dict each value of the data is a list of accepted values.
        return given.keys() == accepted.keys() and all(
            any(_equal(given[key], value) for value in accepted[key]) for key in given
        )
    return (type(given) is type(accepted) and given == accepted) or (
        type(given) is int and type(accepted) is float and given == accepted
    )


def _plain(words: str) -> str:
    return "".join(character for character in words.lower() if character not in " ,./-_*^")


def _signature(function: dict[str, Any]) -> str:
    """A function as one line and one line for each parameter."""
    parameters = function["parameters"]["properties"]
    required = function["parameters"].get("required", [])
    lines = [f"{function['name']}: {function['description']}"]
    for name, parameter in parameters.items():
        optional = "" if name in required else ", optional"
        lines.append(f"- {name} ({parameter['type']}{optional}): {parameter.get('description', '')}")
    return "\n".join(lines)


def _rows(folder: Path) -> list[dspy.Example]:
    rows: list[dspy.Example] = []
    for file in FILES:
        answers = {row["id"]: row["ground_truth"] for row in _lines(folder / "possible_answer" / file)}
        for row in _lines(folder / file):
            functions = "\n".join(_signature(function) for function in row["function"])
            if len(functions) > MOST_CHARACTERS:
                continue
            rows.append(
                dspy.Example(
                    functions=functions, question=row["question"][0][0]["content"], accepted=answers[row["id"]][0]
                ).with_inputs("functions", "question")
            )
    return list({(row.functions, row.question): row for row in rows}.values())


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load(seed: int, train: int, val: int, test: int) -> Task:
    rows = _rows(data_folder("function_call", "bfcl-eval", "bfcl_eval") / "data")
    random.Random(seed).shuffle(rows)
    description = "Function calls from questions; the data is the Berkeley Function Calling Leaderboard's."
    prompts = hand_written("function_call")
    return Task("function_call", description, FunctionCall(), metric, *split(rows, train, val, test), prompts)
