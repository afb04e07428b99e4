"""Count legs in three steps. Questions and verifier are leg_counting of the package reasoning-gym.

Hard in it: the model does not know how many legs a woodlouse or a leech has, multiplies badly and adds up worse, and
each step must be told to work in small pieces. A good set of prompts has the first step write one animal a line, gives
the second a list of legs of animals (the feedback names them), and has the third write the sum out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import dspy

from quality.task import Task
from quality.tasks.parts import MissingPackageError, hand_written, split, step, text


class Animals(dspy.Signature):
    """List the animals."""

    question: str = dspy.InputField()
    animals: str = dspy.OutputField()


class Legs(dspy.Signature):
    """How many legs are these?"""

    animals: str = dspy.InputField()
    legs: str = dspy.OutputField()


class Total(dspy.Signature):
    """Give the total."""

    legs: str = dspy.InputField()
    total: str = dspy.OutputField()


class LegCount(dspy.Module):
    """The animals, the legs of each kind, and the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.animals = step(Animals, 60)
        self.legs = step(Legs, 80)
        self.total = step(Total, 40)

    def forward(self, question: str) -> dspy.Prediction:
        animals = text(self.animals(question=question).animals)
        legs = text(self.legs(animals=animals).legs)
        return dspy.Prediction(animals=animals, legs=legs, total=self.total(legs=legs).total)


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
            feedback = f"The animals are {', '.join(f'{count} {animal}' for animal, count in counts.items())}."
        elif pred_name == "legs":
            feedback = f"The legs are {each}; this step gave {text(prediction.legs)[:120]!r}."
        else:
            feedback = (
                f"The total must be the number {example.total} alone ({each}). It was {text(prediction.total)[:60]!r}."
            )
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
    description = "Legs of a list of animals counted in three steps; questions and verifier are reasoning-gym's."
    return Task(
        "legs", description, LegCount(), metric, *split(list(rows.values()), train, val, test), hand_written("legs")
    )
