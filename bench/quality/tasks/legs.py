"""Count legs: list the animals, ask for the legs of each, and let code multiply and add up.

Questions and verifier are leg_counting of the package reasoning-gym. Hard in it: the code reads the list only in one
form ("2 ants, 1 crab"), the model does not know how many legs a woodlouse, a starfish or a leech has and likes to talk,
and one wrong animal makes the total wrong. A good pair of prompts shows the form of the list, and gives the second step
the legs of many animals, which the feedback names one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import dspy

from quality.task import Task
from quality.tasks.parts import MissingPackageError, hand_written, split, step, text

LISTED = re.compile(r"(?:^|, )(\d{1,3}) ([a-z ]+?)(?=,|$)")  # "2 ants, 1 sea slug"
NUMBER = re.compile(r"\d{1,3}")
MOST_KINDS = 4  # calls of the second step; a question has at most three kinds


class Animals(dspy.Signature):
    """List the animals."""

    question: str = dspy.InputField()
    animals: str = dspy.OutputField()


class Legs(dspy.Signature):
    """How many legs does it have?"""

    animal: str = dspy.InputField()
    legs: str = dspy.OutputField()


class LegCount(dspy.Module):
    """The animals, the legs of each kind in a call of its own, and the sum in code."""

    def __init__(self) -> None:
        super().__init__()
        self.animals = step(Animals, 50)
        self.legs = step(Legs, 20)

    def forward(self, question: str) -> dspy.Prediction:
        animals = text(self.animals(question=question).animals)
        found: list[str] = []
        total = 0
        for count, animal in LISTED.findall(animals)[:MOST_KINDS]:
            legs = text(self.legs(animal=animal).legs)
            found.append(f"{count} {animal}: {legs}")
            total += int(count) * int(number[0] if (number := NUMBER.search(legs)) else 0)
        return dspy.Prediction(animals=animals, legs="; ".join(found), total=str(total))


class VerifierMetric:
    """The package's verifier, and what each step should have found."""

    def __init__(self, verify: Callable[[str, dict[str, Any]], float], legs: dict[str, int]) -> None:
        self._verify = verify
        self._legs = legs

    def __call__(
        self,
        example: dspy.Example,
        prediction: dspy.Prediction,
        trace: object = None,
        pred_name: str | None = None,
        pred_trace: object = None,
    ) -> dspy.Prediction:
        score = self._verify(text(prediction.total), {"answer": example.total})
        counts: dict[str, int] = example.counts
        each = ", ".join(f"{count} {animal} x {self._legs[animal]}" for animal, count in counts.items())
        if score == 1:
            feedback = "Right."
        elif pred_name == "animals":
            listed = ", ".join(f"{count} {animal}{'s' * (count > 1)}" for animal, count in counts.items())
            feedback = f"The list must read {listed!r}; it was {text(prediction.animals)[:120]!r}."
        elif pred_name == "legs":
            feedback = f"Right: {each}. This step gave: {text(prediction.legs)[:120]!r}."
        else:
            feedback = f"The total must be {example.total} ({each}); it was {text(prediction.total)[:60]!r}."
            feedback += f" The list was {text(prediction.animals)[:120]!r}, the legs {text(prediction.legs)[:120]!r}."
        return dspy.Prediction(score=score, feedback=feedback)


def load(seed: int, train: int, val: int, test: int) -> Task:
    if find_spec("reasoning_gym") is None:
        raise MissingPackageError("legs", "reasoning-gym", "pip install reasoning-gym")
    from reasoning_gym import create_dataset  # two seconds
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    # A row's seed is the data set's and its number: far apart, so that two seeds share no rows.
    wanted = 2 * (train + val + test)
    questions = create_dataset(
        "leg_counting", seed=seed * 1_000_003, size=wanted, min_animals=2, max_animals=3, max_instances=4
    )
    rows = {
        entry["question"]: dspy.Example(
            question=entry["question"].strip().rpartition("\n")[2],
            total=entry["answer"],
            counts=entry["metadata"]["animals"],
        ).with_inputs("question")
        for entry in questions
    }
    metric = VerifierMetric(questions.score_answer, ANIMALS)
    description = "Legs of a list of animals counted in two steps and code; questions and verifier are reasoning-gym's."
    return Task(
        "legs", description, LegCount(), metric, *split(list(rows.values()), train, val, test), hand_written("legs")
    )
