"""Turn a request for an appointment into a line of the practice's book, in three steps.

Hard in it: two names stand in every message (who asks, and who is to be seen), an appointment that is moved has an old
day and time too, and the form of the line, "Monday | half past two | Anna", is shown by the labels alone. A good set of
prompts has the first step copy one name, the second copy day and time in one fixed form, and the third put both
together without words of its own; the second must know what the third expects.
"""

from __future__ import annotations

import random

import dspy

from quality.task import Task
from quality.tasks.parts import generate, hand_written, step, text

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
NAMES = ("Anna", "Bruno", "Clara", "David", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Karla", "Liam")
TIMES = ("{}", "quarter past {}", "half past {}", "quarter to {}", "ten past {}")
HOURS = ("nine", "ten", "eleven", "two", "three", "four", "five")
ASKS = (
    "Hello, this is {asker}. Could {person} come {when}? {talk}",
    "{asker} here. My son {person} needs an appointment, best {when}. {talk}",
    "Hi, please write {person} down, {when}. {talk} Thanks, {asker}",
    "{talk} {person} would like to come {when}. Regards, {asker}",
    "This is {asker}. {person} cannot come {old}; is {when} possible instead? {talk}",
)
TALK = ("It is the left knee again.", "It is not urgent.", "We found you on the map.", "It is the first visit.")


class Who(dspy.Signature):
    """Who is the appointment for?"""

    message: str = dspy.InputField()
    person: str = dspy.OutputField()


class When(dspy.Signature):
    """When is the appointment?"""

    message: str = dspy.InputField()
    time: str = dspy.OutputField()


class Line(dspy.Signature):
    """Write the entry."""

    person: str = dspy.InputField()
    time: str = dspy.InputField()
    entry: str = dspy.OutputField()


class Booking(dspy.Module):
    """The person, the time, and the line from both."""

    def __init__(self) -> None:
        super().__init__()
        self.who = step(Who, 30)
        self.when = step(When, 30)
        self.line = step(Line, 40)

    def forward(self, message: str) -> dspy.Prediction:
        person = text(self.who(message=message).person)
        time = text(self.when(message=message).time)
        return dspy.Prediction(person=person, time=time, entry=self.line(person=person, time=time).entry)


def make(rng: random.Random) -> dspy.Example:
    asker, person = rng.sample(NAMES, 2)
    day, old_day = rng.sample(DAYS, 2)
    time, old_time = rng.choice(TIMES).format(rng.choice(HOURS)), rng.choice(TIMES).format(rng.choice(HOURS))
    message = rng.choice(ASKS).format(
        asker=asker,
        person=person,
        when=f"on {day} at {time}",
        old=f"on {old_day} at {old_time}",
        talk=rng.choice(TALK),
    )
    return dspy.Example(message=message, entry=f"{day} | {time} | {person}").with_inputs("message")


def metric(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: object = None,
    pred_name: str | None = None,
    pred_trace: object = None,
) -> dspy.Prediction:
    """The share of right parts in an entry of three; the feedback of a step is about what that step gave."""
    right = _parts(example.entry)
    given = _parts(text(prediction.entry))
    whole = len(given) == len(right)
    score = sum(one == other for one, other in zip(given, right, strict=True)) / len(right) if whole else 0.0
    if pred_name in ("who", "when", "line"):
        return dspy.Prediction(score=score, feedback=_step_feedback(pred_name, example, prediction))
    feedback = f"The entry must be {example.entry!r}; it was {text(prediction.entry)[:80]!r}."
    if not whole:
        feedback += " It must have exactly three parts: day | time | person."
    return dspy.Prediction(score=score, feedback="Right." if score == 1 else feedback)


def _parts(entry: str) -> list[str]:
    return [part.strip().lower() for part in entry.split("|")]


def _step_feedback(step_name: str, example: dspy.Example, prediction: dspy.Prediction) -> str:
    day, time, person = example.entry.split(" | ")
    if step_name == "who":
        return f"The person is {person}; this step gave {text(prediction.person)[:60]!r}."
    if step_name == "when":
        return f"It is {day}, {time}; this step gave {text(prediction.time)[:60]!r}."
    return f"From the person and the time that it got, this step must write a line such as {example.entry!r}."


def load(seed: int, train: int, val: int, test: int) -> Task:
    rows = generate(seed, make, train, val, test)
    description = "Appointment requests turned into lines of a book in three steps."
    return Task("booking", description, Booking(), metric, *rows, hand_written("booking"))
