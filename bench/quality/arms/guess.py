"""One good guess: the proposer is asked once. It shows whether search is worth anything.

The proposer sees the steps of the program and twenty rows of train: inputs, labels, what the unchanged program
answered, its score and the metric's feedback. That costs twenty metric calls.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Final

import dspy

from quality.arms.job import Job, Outcome
from quality.arms.references import with_prompts

__all__ = ["guess"]

_ROWS: Final = 20
_TASK: Final = """\
A program asks a language model in one or more steps. Each step has an instruction, which is all that can be changed.
You see the steps, and examples of what the program was given, what was wanted, what it answered, and how that was
scored (0 to 1). Write the best instruction for each step: the one that makes the program score highest on examples like
these that you do not see. The model that follows the instruction may be a small one."""


def guess(job: Job) -> Outcome:
    steps = [(name, predictor.signature) for name, predictor in job.task.program.named_predictors()]
    signature = dspy.Signature("steps: str, examples: str -> reasoning: str", _TASK)
    for number, (name, _) in enumerate(steps, start=1):
        field = dspy.OutputField(desc=f"the whole new instruction of the step {name}")
        signature = signature.append(f"instruction_{number}", field, str)
    with dspy.context(lm=job.lm("proposer"), adapter=dspy.ChatAdapter()):
        answer = dspy.Predict(signature)(steps="\n\n".join(_step(*step) for step in steps), examples=_examples(job))
    prompts = {name: getattr(answer, f"instruction_{number}") for number, (name, _) in enumerate(steps, start=1)}
    return Outcome(with_prompts(job.task.program, prompts), {"rows_shown": min(_ROWS, len(job.task.train))})


def _step(name: str, signature: Any) -> str:
    fields = [f"{kind}: {', '.join(names)}" for kind, names in _fields(signature)]
    return "\n".join([f"step {name}", *fields, f"instruction: {signature.instructions}"])


def _fields(signature: Any) -> list[tuple[str, list[str]]]:
    return [("inputs", list(signature.input_fields)), ("outputs", list(signature.output_fields))]


def _examples(job: Job) -> str:
    """The first rows of train with what the unchanged program makes of them."""
    program = job.task.program.deepcopy()
    rows = job.task.train[:_ROWS]
    with dspy.context(lm=job.lm("eval")), ThreadPoolExecutor(job.threads) as threads:
        contexts = [copy_context() for _ in rows]  # a thread has DSPy's settings only through one
        records = list(threads.map(lambda context, row: context.run(_record, program, row, job), contexts, rows))
    shown = [json.dumps(record, indent=1, ensure_ascii=False, default=str) for record in records]
    return "\n\n".join(f"example {number}\n{text}" for number, text in enumerate(shown, start=1))


def _record(program: dspy.Module, example: dspy.Example, job: Job) -> dict[str, Any]:
    wanted = {name: value for name, value in example.items() if name not in example.inputs()}
    record: dict[str, Any] = {"inputs": dict(example.inputs()), "wanted": wanted}
    try:
        prediction = program(**example.inputs())
        return record | {"answered": dict(prediction), **_verdict(job.metric(example, prediction))}
    except Exception as error:  # noqa: BLE001 - a program, its LM and a metric are foreign code
        return record | {"error": f"{type(error).__name__}: {error}"[:500]}


def _verdict(answer: Any) -> dict[str, Any]:
    if not hasattr(answer, "score"):
        return {"score": answer}
    return {"score": answer.score, "feedback": getattr(answer, "feedback", None)}
