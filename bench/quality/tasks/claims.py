"""Decide a customer's claim in two steps; the best prompt of the first depends on the second.

Hard in it: the second step sees only the first twelve words of the first one's note, and the house rule stands nowhere
but in the feedback. A note that retells the story loses what the rule needs; a note in another form than the second
prompt speaks of is misread. A good pair of prompts agrees on a fixed form of the four facts, and the second goes
through the rule in its order.
"""

from __future__ import annotations

import random

import dspy

from quality.task import Task
from quality.tasks.parts import generate, hand_written, step, text

NOTE_WORDS = 12
RULES = {
    "escalate": "there is no receipt, whatever else is true",
    "replace": "there is a receipt and the thing arrived damaged",
    "reject": "not damaged, and it came more than 30 days ago",
    "credit": "not damaged, it came within 30 days, and it was opened or used",
    "refund": "not damaged, it came within 30 days, and it was never opened",
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
WHEN_SOON = (
    "3 days ago",
    "yesterday",
    "last week",
    "12 days ago",
    "two weeks ago",
    "20 days ago",
    "about three weeks ago",
    "28 days ago",
)
WHEN_LATE = (
    "35 days ago",
    "six weeks ago",
    "two months ago",
    "41 days ago",
    "half a year ago",
    "50 days ago",
    "seven weeks ago",
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


class Note(dspy.Signature):
    """Summarize the customer's message."""

    message: str = dspy.InputField()
    note: str = dspy.OutputField()


class Decide(dspy.Signature):
    """Decide the claim."""

    note: str = dspy.InputField()
    decision: str = dspy.OutputField()


class Claims(dspy.Module):
    """A note of at most twelve words, and a decision from the note alone."""

    def __init__(self) -> None:
        super().__init__()
        self.note = step(Note, 60)
        self.decide = step(Decide, 30)

    def forward(self, message: str) -> dspy.Prediction:
        note = " ".join(text(self.note(message=message).note).split()[:NOTE_WORDS])
        return dspy.Prediction(note=note, decision=self.decide(note=note).decision)


def make(rng: random.Random) -> dspy.Example:
    decision = rng.choice(list(RULES))
    receipt = decision != "escalate"
    damaged = decision == "replace" or (decision == "escalate" and rng.random() < 0.3)
    late = decision == "reject" or (decision in ("escalate", "replace") and rng.random() < 0.4)
    opened = decision == "credit" or (decision in ("reject", "escalate") and rng.random() < 0.5)
    thing = rng.choice(THINGS)
    state = DAMAGED if damaged else OPENED if opened else SEALED
    facts = [
        f"The {thing} came {rng.choice(WHEN_LATE if late else WHEN_SOON)}.",
        rng.choice(state),
        rng.choice(RECEIPT if receipt else NO_RECEIPT).format(number=rng.randrange(1000, 9999)),
        *rng.sample(TALK, 2),
    ]
    rng.shuffle(facts)
    end = rng.choice(("Please help.", "What now?", "Regards."))
    message = f"Hello, it is about my {thing}. {' '.join(facts)} {end}"
    return dspy.Example(message=message, decision=decision).with_inputs("message")


def metric(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: object = None,
    pred_name: str | None = None,
    pred_trace: object = None,
) -> dspy.Prediction:
    """1 for the right word of the five; the feedback says why it is the right one."""
    right = example.decision
    given = text(prediction.decision)
    if given.lower().strip(".\"' ") == right:
        return dspy.Prediction(score=1.0, feedback=f"Right: {right}.")
    feedback = f"The decision must be just the word '{right}', because {RULES[right]}. It was: {given[:80]!r}."
    feedback += f" The second step saw only this note, cut to {NOTE_WORDS} words: {text(prediction.note)!r}."
    return dspy.Prediction(score=0.0, feedback=feedback)


def load(seed: int, train: int, val: int, test: int) -> Task:
    rows = generate(seed, make, train, val, test)
    description = "A claim decided in two steps; the second sees only a short note of the first."
    return Task("claims", description, Claims(), metric, *rows, hand_written("claims"))
