"""Decide a customer's claim in three steps; the best prompts of the first two depend on the third.

Hard in it: the last step sees only the first four words of what the first two give, and the house rule stands nowhere
but in the feedback. A sentence copied from the message is cut before it says anything; a word that the last prompt does
not speak of is misread. A good set of prompts agrees on one word for each fact, and the last shows all cases.
"""

from __future__ import annotations

import random

import dspy

from quality.task import Task
from quality.tasks.parts import generate, hand_written, step, text

FACT_WORDS = 4
RULES = {
    "escalate": "there is no receipt, whatever else is true",
    "replace": "there is a receipt, and the thing arrived damaged",
    "credit": "there is a receipt, and the thing is whole and was opened or used",
    "refund": "there is a receipt, and the thing is whole and was never opened",
}
THINGS = (
    "kettle",
    "desk lamp",
    "rucksack",
    "radio",
    "blender",
    "tent",
    "keyboard",
    "toaster",
    "suitcase",
    "clock",
    "headset",
    "heater",
)
DAMAGED = (
    "The glass was cracked when I unpacked it.",
    "One corner was smashed in the box.",
    "It came with a broken switch.",
    "There was a dent in it on arrival.",
)
OPENED = (
    "I have used it twice and do not like it.",
    "I opened it and tried it once.",
    "It has been out of its box for a test.",
    "My son played with it for an evening.",
)
SEALED = (
    "The box is still sealed.",
    "I never opened the parcel.",
    "It is as it came, wrapped and untouched.",
    "I have not even unpacked it.",
)
RECEIPT = ("The receipt is here.", "I kept the receipt.", "I attach the receipt.", "Receipt number {number}.")
NO_RECEIPT = (
    "I cannot find the receipt.",
    "The receipt went out with the rubbish.",
    "It was a gift, without a receipt.",
    "Sadly I have no receipt any more.",
)
TALK = (
    "We have been customers for years.",
    "My sister told me to write to you.",
    "The weather here is awful, by the way.",
    "Your driver was very friendly.",
    "I wanted it for the holidays.",
    "I work in shifts, so please mail me.",
    "The colour is nicer than on the photo.",
)
ENDS = ("Please help.", "What now?", "Regards.")


class Receipt(dspy.Signature):
    """What about the receipt?"""

    message: str = dspy.InputField()
    receipt: str = dspy.OutputField()


class State(dspy.Signature):
    """What about the goods?"""

    message: str = dspy.InputField()
    state: str = dspy.OutputField()


class Decide(dspy.Signature):
    """Decide the claim."""

    receipt: str = dspy.InputField()
    state: str = dspy.InputField()
    decision: str = dspy.OutputField()


class Claims(dspy.Module):
    """Two facts of at most four words each, and a decision from the facts alone."""

    def __init__(self) -> None:
        super().__init__()
        self.receipt = step(Receipt, 30)
        self.state = step(State, 30)
        self.decide = step(Decide, 30)

    def forward(self, message: str) -> dspy.Prediction:
        receipt = first_words(self.receipt(message=message).receipt)
        state = first_words(self.state(message=message).state)
        decision = self.decide(receipt=receipt, state=state).decision
        return dspy.Prediction(receipt=receipt, state=state, decision=decision)


def first_words(fact: object) -> str:
    return " ".join(text(fact).split()[:FACT_WORDS])


def make(rng: random.Random) -> dspy.Example:
    decision = rng.choice(list(RULES))
    states = {"replace": DAMAGED, "credit": OPENED, "refund": SEALED}
    facts = [
        rng.choice(states[decision] if decision in states else rng.choice(list(states.values()))),
        rng.choice(NO_RECEIPT if decision == "escalate" else RECEIPT).format(number=rng.randrange(1000, 9999)),
        rng.choice(TALK),
    ]
    rng.shuffle(facts)
    message = f"Hello, it is about my {rng.choice(THINGS)}. {' '.join(facts)} {rng.choice(ENDS)}"
    return dspy.Example(message=message, decision=decision).with_inputs("message")


def metric(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: object = None,
    pred_name: str | None = None,
    pred_trace: object = None,
) -> dspy.Prediction:
    """1 for the right word of the four; the feedback says why it is the right one."""
    right = example.decision
    given = text(prediction.decision)
    if given.lower().strip(".\"' ") == right:
        return dspy.Prediction(score=1.0, feedback=f"Right: {right}.")
    feedback = f"The decision must be just the word '{right}', because {RULES[right]}. It was: {given[:80]!r}."
    feedback += f" The last step saw only receipt {text(prediction.receipt)!r} and state {text(prediction.state)!r},"
    feedback += f" each cut to {FACT_WORDS} words."
    return dspy.Prediction(score=0.0, feedback=feedback)


def load(seed: int, train: int, val: int, test: int) -> Task:
    rows = generate(seed, make, train, val, test)
    description = "A claim decided in three steps; the last sees only four words of each fact."
    return Task("claims", description, Claims(), metric, *rows, hand_written("claims"))
