"""Turn a seller's words into a title in the house's form. The metric is noisy and gives no feedback.

Hard in it: three scores in ten are drawn by lot, so a difference between two prompts on twenty rows says little, and a
single row says nothing. The form "Make Thing | size | condition" must be found from the titles in the rows, and the
conditions are three words (new, good, worn) for many ways to say them. A good prompt shows the form by examples.
"""

from __future__ import annotations

import random
import threading
from collections import Counter

import dspy

from quality.task import Task
from quality.tasks.parts import generate, hand_written, step, text

MAKES = ("Nordvik", "Bellini", "Hartmann", "Kasuri", "Orso", "Tamsin", "Velden", "Quayle", "Ribera", "Stolz")
THINGS = ("jacket", "coat", "shirt", "dress", "skirt", "sweater", "raincoat", "blouse", "vest", "cardigan")
SIZES = {"S": ("small", "a size S"), "M": ("medium", "size M"), "L": ("large", "a size L"), "XL": ("extra large", "XL")}
CONDITIONS = {
    "new": ("the tags are still on", "never worn", "unworn, a present that did not fit", "still in its bag"),
    "good": ("worn a few times only", "no marks on it", "looked after well, washed by hand", "in a fine state"),
    "worn": ("a small hole at one elbow", "the colour has faded a bit", "one button is missing", "a stain on the back"),
}
TALK = ("From a home without smokers.", "Collect it or I post it.", "My wardrobe is too full.", "Price is firm.")
LOTTERY = 0.3  # share of scores that are drawn by lot


class Title(dspy.Signature):
    """Write a title for the listing."""

    listing: str = dspy.InputField()
    title: str = dspy.OutputField()


class ListingTitle(dspy.Module):
    """One step."""

    def __init__(self) -> None:
        super().__init__()
        self.write = step(Title, 40)

    def forward(self, listing: str) -> dspy.Prediction:
        return self.write(listing=listing)


def make(rng: random.Random) -> dspy.Example:
    name, thing, size, condition = (rng.choice(tuple(kind)) for kind in (MAKES, THINGS, SIZES, CONDITIONS))
    said = [f"It is {rng.choice(SIZES[size])}.", f"{rng.choice(CONDITIONS[condition])}.".capitalize(), rng.choice(TALK)]
    rng.shuffle(said)
    listing = f"Selling my {thing} by {name}. {' '.join(said)}"
    title = f"{name} {thing} | {size} | {condition}"
    return dspy.Example(listing=listing, title=title).with_inputs("listing")


def quality(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: object = None,
    pred_name: str | None = None,
    pred_trace: object = None,
) -> float:
    """The share of right parts of three, and 0 where there are not three."""
    given = [part.strip() for part in text(prediction.title).strip('"').split("|")]
    right = example.title.split(" | ")
    if len(given) != len(right):
        return 0.0
    return sum(one.lower() == other.lower() for one, other in zip(given, right, strict=True)) / len(right)


class NoisyMetric:
    """The quality, but for scores that are drawn by lot. What is drawn depends on the call alone, not on the order."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._times: Counter[tuple[str, str]] = Counter()  # how often an answer to a listing was scored

    def __call__(
        self,
        example: dspy.Example,
        prediction: dspy.Prediction,
        trace: object = None,
        pred_name: str | None = None,
        pred_trace: object = None,
    ) -> float:
        call = (example.listing, text(prediction.title))
        with self._lock:
            self._times[call] += 1
            time = self._times[call]
        rng = random.Random(f"{self._seed} {time} {call}")
        if rng.random() < LOTTERY:
            return rng.randrange(4) / 3
        return quality(example, prediction)


def load(seed: int, train: int, val: int, test: int) -> Task:
    rows = generate(seed, make, train, val, test)
    description = "Titles in a form that only the labels show; three scores in ten are drawn by lot."
    prompts = hand_written("listing_title")
    return Task("listing_title", description, ListingTitle(), NoisyMetric(seed), *rows, prompts, quality)
