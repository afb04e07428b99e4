"""Sort a customer's message to a queue. The metric's feedback misleads.

Hard in it: a message tells a story of one kind and asks for something of another, and what it asks for decides. The
reviewer's remarks blame tone, length and detail, which do not count, or name a queue that is wrong; the labels in the
rows are right. A good prompt gives the four queues, looks at the request only, and follows no remark.
"""

from __future__ import annotations

import random
import zlib

import dspy

from quality.task import Task
from quality.tasks.parts import generate, hand_written, step, text

QUEUES = ("billing", "delivery", "returns", "account")
STORIES = {
    "billing": (
        "You charged my card twice for one order.",
        "The invoice shows a price that I never agreed to.",
        "The voucher was not taken off the bill.",
        "I paid by bank transfer a week ago.",
    ),
    "delivery": (
        "My parcel has been at the depot for six days.",
        "The driver left the box at a neighbour's.",
        "The tracking page has not moved since Monday.",
        "The courier rang at the wrong door.",
    ),
    "returns": (
        "The shoes that came are too small.",
        "The jacket has a hole in the sleeve.",
        "I got a blue lamp and had ordered a green one.",
        "The mixer stopped after one use.",
    ),
    "account": (
        "I cannot log in any more.",
        "I have moved to another town.",
        "I have a new mail address since May.",
        "Somebody else seems to know my password.",
    ),
}
REQUESTS = {
    "billing": (
        "Please send me a corrected invoice.",
        "Could you tell me what I still have to pay?",
        "I want the amount booked back to my card.",
        "Can I pay the rest in two parts?",
    ),
    "delivery": (
        "When will it be here?",
        "Please bring it on Saturday instead.",
        "Could the courier leave it in the garage?",
        "Where is it now?",
    ),
    "returns": (
        "How do I send it back?",
        "Please send me a label for the way back.",
        "I would like to swap it for another one.",
        "Can I bring it back to a shop?",
    ),
    "account": (
        "Please change my address in your files.",
        "How do I set a new password?",
        "Please delete my profile.",
        "Can you put my new mail address in?",
    ),
}
OPENINGS = ("Hello,", "Good morning.", "Hi there,", "To whom it may concern:", "Well,")
REMARKS = (
    "The answer should apologise first.",
    "The answer is too short to be useful; explain the choice in a full sentence.",
    "The customer is upset; angry messages go to 'complaints'.",
    "The answer should repeat what the customer wrote.",
    "The first sentence tells what the message is about; this looks like {other}.",
    "I would have said {other}.",
)


class Sort(dspy.Signature):
    """Which team should handle this message?"""

    message: str = dspy.InputField()
    queue: str = dspy.OutputField()


class TicketQueue(dspy.Module):
    """One step."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = step(Sort, 40)

    def forward(self, message: str) -> dspy.Prediction:
        return self.sort(message=message)


def make(rng: random.Random) -> dspy.Example:
    queue, other = rng.sample(QUEUES, 2)
    story = rng.choice(STORIES[other if rng.random() < 0.7 else queue])
    message = f"{rng.choice(OPENINGS)} {story} {rng.choice(REQUESTS[queue])}"
    return dspy.Example(message=message, queue=queue).with_inputs("message")


def metric(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: object = None,
    pred_name: str | None = None,
    pred_trace: object = None,
) -> dspy.Prediction:
    """1 for the right queue's word. The feedback to a wrong one is a reviewer's remark that leads astray."""
    given = text(prediction.queue)
    if given.lower().strip(".\"' ") == example.queue:
        return dspy.Prediction(score=1.0, feedback="The reviewer agrees.")
    # By the message, so that the same message always gets the same remark.
    choice = random.Random(zlib.crc32(example.message.encode()))
    other = choice.choice([queue for queue in QUEUES if queue != example.queue])
    remark = choice.choice(REMARKS).format(other=other)
    return dspy.Prediction(score=0.0, feedback=f"The reviewer does not accept {given[:60]!r}. Reviewer: {remark}")


def load(seed: int, train: int, val: int, test: int) -> Task:
    rows = generate(seed, make, train, val, test)
    description = "Messages sorted to four queues by what they ask for; the feedback misleads."
    return Task("ticket_queue", description, TicketQueue(), metric, *rows, hand_written("ticket_queue"))
