"""The events of a compile as a display gets them, with texts that try to steer what shows them.

As a program it shows them on its stderr: `story_events.py [verbose] [hang]`; "hang": it waits in an evaluation.
"""

from __future__ import annotations

import sys
import threading

from rlmoptimizer.events import (
    AgentSubmitted,
    CompileFinished,
    CompileStarted,
    EvaluationFinished,
    EvaluationStarted,
    Event,
    ExamplesScored,
    FellBack,
    KernelStarted,
    PromptUpdated,
    Split,
    SubmissionRefused,
    TurnFinished,
    TurnStarted,
)
from rlmoptimizer.show.terminal.display import Display

EVIL = "[bold red]markup[/] \x1b[2J\x1b]0;title\x07 \x9b31m \r gone \u202e reversed \x00 <script>alert(1)</script>"


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def evaluation(
    total: int,
    run_id: str = "r3",
    *,
    split: Split = "train",
    score: float = 0.5,
    left: int = 7,
    baseline: bool = False,
) -> list[Event]:
    scored: list[Event] = [ExamplesScored(run_id, split, done, total, mean_score=score) for done in range(1, total + 1)]
    passed = int(total * score)
    finished = EvaluationFinished(run_id, split, total, total, passed=passed, score=score, left=left)
    return [EvaluationStarted(run_id, split, total, baseline=baseline), *scored, finished]


def _split(n: int, scores: tuple[float, float] | None) -> dict[str, object]:
    if scores is None:
        found: dict[str, object] = dict.fromkeys(("baseline", "result", "difference", "interval"))
        return {**found, "n": n, "better": 0, "worse": 0}
    before, after = scores
    interval = [0.0, 100.0]
    return {
        "n": n, "baseline": before, "result": after, "difference": after - before, "interval": interval,
        "better": 1, "worse": 0,
    }  # fmt: skip


def _usage(calls: int, cost: float | None) -> dict[str, object]:
    return {
        "calls": calls,
        "cached_calls": 0,
        "prompt_tokens": 1200,
        "completion_tokens": 300,
        "cost_usd": cost,
        "known_cost_usd": cost or 0.0,
        "unpriced_calls": 0 if cost is not None else calls,
    }


GIVEN = {"first": "Answer.", "second": f"Reply. {EVIL}"}
BETTER = {**GIVEN, "first": "Answer in one word."}
CODE = f"update_prompt('first', 'Answer in one word.')\nevaluate_program('val')  # {EVIL}"
STORY: list[Event] = [
    CompileStarted(
        ("first", "second"),
        4,
        2,
        22,
        test_count=3,
        models={"root": ("openai/agent",), "eval": ("openai/small", "openai/other")},
        metric="my.metric",
        max_cost_usd=5.0,
        store="my runs/runs-0001.sqlite",
        prompts=GIVEN,
        executor="ProcessPoolExecutor",
    ),
    *evaluation(4, "r1", score=0.25, left=22, baseline=True),
    *evaluation(2, "r2", split="val", left=22, baseline=True),
    KernelStarted("KernelInterpreter", f"confined by {EVIL}", "N", missing={"cpu_capped": EVIL}),
    TurnStarted(1, 9, EVIL, CODE),
    PromptUpdated("first", GIVEN["first"], BETTER["first"]),
    *evaluation(2, "r3", split="val", score=1.0, left=12),
    TurnFinished(1, 9, EVIL, CODE, output=EVIL, left=12, seconds=75.0),
    SubmissionRefused(EVIL),
    TurnStarted(2, 9, "I submit.", "SUBMIT(...)"),
    TurnFinished(2, 9, "I submit.", "SUBMIT(...)", f"FINAL: {BETTER}", left=12, seconds=2.0, submitted=True),
    AgentSubmitted(BETTER),
    FellBack(EVIL, "r7"),
    CompileFinished(
        0.5,
        1.0,
        10,
        2,
        usage={"root": _usage(2, 0.5), "sub": _usage(0, 0.0), "eval": _usage(8, None)},
        verdict="gain on val: 50.0 -> 100.0",
        splits={"train": _split(4, (25.0, 50.0)), "val": _split(2, (50.0, 100.0)), "test": _split(3, None)},
        prompts_changed=("first",),
        seconds={"baseline": 0.0, "agent": 60.0, "final_check": 5.0},
    ),
]


def main(*words: str) -> None:
    display = Display(verbose="verbose" in words)
    try:
        for event in STORY:
            display(event)
            if "hang" in words and isinstance(event, ExamplesScored):
                threading.Event().wait(60)
    finally:
        display.close()
    print("the program goes on")


if __name__ == "__main__":
    main(*sys.argv[1:])
