"""The program that evaluations are measured with, and an LM that answers it at once or after a time.

The names are public, because worker processes import them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import dspy
from dspy import lm15

from rlmoptimizer.task.dataset import Row, build_dataset

__all__ = ["Engine", "TwoSteps", "answered", "metric", "rows_of", "text_of"]


def text_of(fields: Mapping[str, str]) -> str:
    """An answer as DSPy's ChatAdapter reads it."""
    return "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items())


def answered(request: lm15.Request, text: str) -> lm15.Response:
    """The response with this text."""
    return lm15.Response(
        id=None,
        model=request.model,
        message=lm15.Message.assistant(text),
        finish_reason="stop",
        usage=lm15.Usage(input_tokens=0, output_tokens=0, total_tokens=0),
    )


class Engine:
    """Answers every request with the same text, after so many seconds."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._text = text_of({"keywords": "one, two", "answer": "two", "completed": ""})

    def complete(self, request: lm15.Request) -> lm15.Response:
        if self._seconds:
            time.sleep(self._seconds)
        return answered(request, self._text)


class TwoSteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.extract = dspy.Predict("question -> keywords")
        self.answer = dspy.Predict("question, keywords -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=question, keywords=self.extract(question=question).keywords)


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return example.answer == prediction.answer


def rows_of(count: int) -> tuple[Row, ...]:
    """So many examples."""
    examples = [dspy.Example(question=f"which of {n} and two?", answer="two") for n in range(count)]
    return build_dataset([example.with_inputs("question") for example in examples]).train
