"""What a person is shown of a compile's events: blocks, and lines that are said."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any, Final

from kernel_bridge.text import shorten_list
from rlmoptimizer.events import (
    AgentSubmitted,
    Branched,
    CompileFinished,
    CompileResumed,
    CompileStarted,
    EvaluationFinished,
    Event,
    FellBack,
    KernelDied,
    KernelStarted,
    NoteGiven,
    PromptUpdated,
    StopRequested,
    SubmissionRefused,
    TurnFinished,
    TurnStarted,
    WorkPaused,
    WorkUnpaused,
)
from rlmoptimizer.show.terminal.blocks import Block, Code, Facts, Grid, Meter, Output, Part, Words
from rlmoptimizer.show.terminal.figures import clock_text, percent_text
from rlmoptimizer.text import count_text, usd_text

__all__ = ["Story"]

_ROLES: Final = {"root": "root_lm", "sub": "sub_lm", "eval": "eval_lm"}
_MOST_STEPS: Final = 8  # that are named in the result
_PHASES: Final = {"final_check": "final check"}


class Story:
    """Follows one compile. `blocks` and `line` are asked once for each event, in order, by one thread at a time."""

    def __init__(self) -> None:
        self._limit = 0  # budget units
        self._train_count = 0
        self._scored = "val"  # the split whose best score is told
        self._best: tuple[float, str] | None = None  # the score, and the run that it is from
        self._store = ""
        self._is_kept = False
        self._turn = 0  # whose code is shown
        self._kernels = 0
        self._given: Mapping[str, str] = {}  # the prompts of the program as it was given
        self._shown: dict[str, str] = {}  # the new ones that are shown, by step
        self._steps: tuple[str, ...] = ()
        self._is_submitted = False

    def line(self, event: Event) -> str | None:
        """What is said of an event however little is shown."""
        if isinstance(event, WorkPaused):
            how = self._command("unpause")
            return f"paused before turn {event.before_turn} of the agent{f'; to go on: {how}' if how else ''}"
        if isinstance(event, WorkUnpaused):
            return f"going on after a pause of {clock_text(event.seconds)}"
        if isinstance(event, StopRequested):
            return "asked to stop: no further turn begins, and the best so far is taken"
        if isinstance(event, NoteGiven):
            return f"the agent reads this note from turn {event.before_turn} on: {event.text}"
        if isinstance(event, Branched):
            return f"this is a branch: it begins with the prompts of run {event.run_id} of {event.store}"
        return None

    def blocks(self, event: Event) -> list[Block]:
        """What is shown of an event where everything is."""
        if isinstance(event, CompileStarted):
            return [self._head(event)]
        if isinstance(event, CompileResumed):
            self._best = event.best
            text = f"so far: turns {event.turns}, runs {event.runs}; {event.left} of {self._limit} budget units left"
            return [Block("Going on", (Words(text),))]
        if isinstance(event, KernelStarted):
            return [self._kernel(event)]
        if isinstance(event, KernelDied):
            return [Block("", (Words("The agent's kernel died."),), "warning")]
        if isinstance(event, TurnStarted):
            return [self._turn_head(event)]
        if isinstance(event, TurnFinished):
            return self._turn_end(event)
        if isinstance(event, EvaluationFinished):
            self._look_at(event)
            return []
        if isinstance(event, PromptUpdated):
            self._shown[event.step] = event.after
            return [Block(f"New prompt for {event.step}", (Words(event.after),), "good")]
        return self._ending(event)

    def _ending(self, event: Event) -> list[Block]:
        if isinstance(event, AgentSubmitted):
            return [self._submission(event)]
        if isinstance(event, SubmissionRefused):
            return [Block("Submission refused", (Words(event.reason),), "warning")]
        if isinstance(event, FellBack):
            title = "The submission is not given back" if self._is_submitted else "Ended without a submission"
            return [Block(title, (Words(f"{event.reason}\nTaken: the prompts of run {event.run_id}"),), "warning")]
        if isinstance(event, CompileFinished):
            return [self._result(event)]
        return []

    # the head

    def _head(self, event: CompileStarted) -> Block:
        self._limit, self._train_count, self._steps = event.budget, event.train_count, event.steps
        self._scored = "val" if event.val_count else "train"
        self._store, self._is_kept, self._given = event.store, event.is_kept, event.prompts
        splits = {"train": event.train_count, "val": event.val_count, "test": event.test_count}
        units = "one for each example evaluated and each prompt to the sub-LM"
        limit = "" if event.max_cost_usd is None else f"; at most {usd_text(event.max_cost_usd)}"
        kept = "" if event.is_kept else " (removed at the end; run_storage_dir=... keeps it)"
        rows = [
            ("steps", ", ".join(event.steps)),
            *((_ROLES[role], ", ".join(event.models.get(role, ()))) for role in _ROLES),
            ("examples", ", ".join(f"{name} {count}" for name, count in splits.items() if count)),
            ("metric", event.metric),
            ("executor", event.executor),
            ("budget", f"{event.budget} units, {units}{limit}"),
            ("store", f"{event.store}{kept}" if event.store else ""),
            ("watch it", self._command("view") if event.is_kept else ""),
        ]
        return Block("Optimizing", (Facts(tuple(row for row in rows if row[1])),))

    def _kernel(self, event: KernelStarted) -> Block:
        self._kernels += 1
        if self._kernels > 1:
            return Block("", (Words("The agent has a new kernel."),))
        console = self._command("console") if self._is_kept else "python -m kernel_bridge attach"
        rows = [("kernel", event.summary), ("look inside", console if event.connection_file else "")]
        return Block("The agent begins", (Facts(tuple(row for row in rows if row[1])),))

    def _command(self, name: str) -> str:
        """The command line that does something with this optimization; "": nobody knows where it is."""
        return f"rlmoptimizer {name} {shlex.quote(os.path.dirname(self._store) or '.')}" if self._store else ""

    # a turn

    def _turn_head(self, event: TurnStarted | TurnFinished) -> Block:
        self._turn = event.number
        parts: list[Part] = [Words(event.reasoning)] if event.reasoning.strip() else []
        parts += [Code(event.code)] if event.code.strip() else []
        return Block(f"Turn {event.number}/{event.limit}", tuple(parts), "turn")

    def _turn_end(self, event: TurnFinished) -> list[Block]:
        blocks = [] if self._turn == event.number else [self._turn_head(event)]
        # What was submitted stands in the block of the submission.
        parts: list[Part] = [] if event.submitted or not event.output.strip() else [Output(event.output)]
        best = ""
        if self._best is not None:
            score, run_id = self._best
            best = f", best on {self._scored} {percent_text(score)} ({run_id})"
        text = f"{event.left}/{self._limit} units left{best}, {clock_text(event.seconds)}"
        return [*blocks, Block("", (*parts, Meter(event.left, self._limit, text)), "turn")]

    def _look_at(self, event: EvaluationFinished) -> None:
        """Whether a run on the whole of the scored split is the best so far."""
        whole = event.split == "val" or (event.split == "train" and event.total >= self._train_count)
        if event.split != self._scored or not whole or event.score is None or event.done < event.total:
            return
        if self._best is None or event.score > self._best[0]:
            self._best = (event.score, event.run_id)

    # the end

    def _submission(self, event: AgentSubmitted) -> Block:
        """Each prompt once: not again what stands above as a new prompt, nor what is as it was."""
        self._is_submitted = True
        lines: list[str] = []
        for step, text in event.prompts.items():
            if self._given.get(step) == text:
                lines.append(f"{step}: as it was")
            elif self._shown.get(step) == text:
                lines.append(f"{step}: as shown above, where it was set")
            else:
                lines.append(f"{step}:\n{text}")
        return Block("Submitted", tuple(map(Words, lines)), "good")

    def _result(self, event: CompileFinished) -> Block:
        steps = shorten_list(event.prompts_changed, _MOST_STEPS) or "none"
        changed = f"{steps} ({len(event.prompts_changed)} of {len(self._steps)})"
        spent = f"{event.spent} of {self._limit} units in {count_text(event.turns, 'turn')}"
        facts = [("prompts changed", changed), ("spent", spent), ("time", _time_text(event.seconds))]
        cost = _total_text(event.usage)
        facts += [("cost", cost)] if cost else []
        grids = [_splits_grid(event.splits), _usage_grid(event.usage)]
        return Block("Result", (grids[0], Facts(tuple(facts)), *([grids[1]] if grids[1].rows else [])))


def _splits_grid(splits: Mapping[str, Mapping[str, Any]]) -> Grid:
    header = ("split", "n", "baseline", "result", "difference (95%)", "better", "worse")
    return Grid(header, tuple((split, *_split_row(found)) for split, found in splits.items()))


def _split_row(found: Mapping[str, Any]) -> tuple[str, ...]:
    scores = ("-" if found[name] is None else f"{found[name]:.1f}" for name in ("baseline", "result"))
    difference = "-"
    if found["difference"] is not None:
        difference = f"{found['difference']:+.1f}"
        if found["interval"] is not None:
            low, high = found["interval"]
            difference += f" ({low:+.1f} to {high:+.1f})"
    return (f"{found['n']:,}", *scores, difference, str(found["better"]), str(found["worse"]))


def _usage_grid(usage: Mapping[str, Mapping[str, Any]]) -> Grid:
    """What was asked of each LM; dollars only where those of any are known."""
    asked = {role: used for role, used in usage.items() if used["calls"]}
    priced = any(used["cost_usd"] for used in asked.values())
    header = ("LM", "calls", "from cache", "tokens in", "out", *(("cost",) if priced else ()))
    rows: list[tuple[str, ...]] = []
    for role, used in asked.items():
        tokens = ("-" if used[name] is None else f"{used[name]:,}" for name in ("prompt_tokens", "completion_tokens"))
        cost = "unknown" if used["cost_usd"] is None else usd_text(used["cost_usd"])
        row = (_ROLES.get(role, role), f"{used['calls']:,}", f"{used['cached_calls']:,}", *tokens)
        rows.append((*row, *((cost,) if priced else ())))
    return Grid(header, tuple(rows))


def _total_text(usage: Mapping[str, Mapping[str, Any]]) -> str:
    """Dollars of all LMs; "": nothing of them is known."""
    known = sum(used["known_cost_usd"] for used in usage.values())
    unpriced = sum(used["unpriced_calls"] for used in usage.values())
    if not known:
        return ""
    return usd_text(known) + (f", and {count_text(unpriced, 'call')} of unknown price" if unpriced else "")


def _time_text(seconds: Mapping[str, float]) -> str:
    phases = ", ".join(f"{_PHASES.get(name, name)} {clock_text(spent)}" for name, spent in seconds.items() if spent)
    return f"{clock_text(sum(seconds.values()))}{f' ({phases})' if phases else ''}"
