"""The optimization that chaos is made of: one compile in this process, as its plan says, and what it leaves behind.

The agent is scripted and idempotent: what is done it knows from `previous_trajectory` and `optimization_status()`, as a
resumed agent does. The program writes one line for every example it finishes, synced, into a file outside the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import psutil
import toy
from dspy import lm15
from offline import Asked, ScriptedRootLM, field_lm, text_lm

from kernel_bridge import KernelInterpreter
from rlmoptimizer import OptimizerError, RLMDocstringOptimizer
from rlmoptimizer.store import database
from rlmoptimizer.store import file as store_file

TRAIN, VAL, TEST = 12, 5, 4

# One step of the script for each turn. A step that is cut is done once more: what it asked for is gone on with.
STEPS = [
    "evaluate_program(prompts={'topic': 'Try one word.'})",
    "evaluate_program(limit=4, sample='random')",
    "first = evaluate_program(limit=4, sample='random'); evaluate_program(limit=4, sample='random')",
    """
asked = optimization_status()['sub_lm_calls']
if asked < 1:
    llm_query('what is wrong?')
if asked < 4:
    llm_query_batched(['why?', 'and why?', 'so?'])
""",
    f"update_prompt('topic', {toy.FIX!r}); evaluate_program('val')",
    """
run = evaluate_program(prompts={'topic': 'In a phrase.'})
evaluate_program(failed_from_run=run['run_id'], limit=3, prompts={'topic': 'Anew, in one word.'})
""",
    "for text in ('A', 'B', 'C'):\n    evaluate_program(ids='2-6', prompts={'reply': f'Answer by the topic. {text}'})",
    """
prompts = {'topic': 'Say it in one word.'}
evaluate_program(limit=3, repeats=3, prompts=prompts)
evaluate_program(ids='1-4', repeats=2, reuse=True, prompts=prompts)
evaluate_program()
run_data('r1')
""",
]

DRIVER = """
import re
def reached(text):
    return max([int(number) for number in re.findall(r'<done (\\d+)>', text or '')], default=0)
step = 1 + max([{here}, *(reached(turn['output']) for turn in previous_trajectory)])
if step > {count}:
    # never run before: it is checked on val when the agent has ended
    SUBMIT(optimized_dspy_program={{**optimization_status()['current_prompts'], 'reply': 'Answer by the topic. Z'}})
exec({steps!r}[step - 1])
print(f'<done {{step}}>')
"""


def next_turn(question: Asked) -> str:
    here = max([int(number) for number in re.findall(r"<done (\d+)>", question.text)], default=0)
    return DRIVER.format(here=here, count=len(STEPS), steps=STEPS)


class Clock:
    """Counts what happens in this process, and strikes when the plan says so. Thread-safe.

    Strikes are called for by ("all", n), by ("agent", n), counted from the agent's first turn on, or by (kind, n).
    """

    def __init__(self, strikes: dict[tuple[str, int], Callable[[], None]]) -> None:
        self._strikes = strikes
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def tick(self, kind: str) -> None:
        with self._lock:
            counted = ["all", kind, *(["agent"] if kind == "turn" or self.counts["turn"] else [])]
            self.counts.update(counted)
            strikes = [self._strikes.pop((name, self.counts[name]), None) for name in counted]
        for strike in strikes:
            if strike is not None:
                strike()


class Counting(toy.Triage):
    """Writes down what it has finished. `log` and `clock` are not part of what is optimized."""

    log: int
    clock: Clock

    def forward(self, message: str) -> dspy.Prediction:
        cls = type(self)
        cls.clock.tick("example")
        prediction = super().forward(message=message)
        prompts = {name: step.signature.instructions for name, step in self.named_predictors()}
        os.write(cls.log, f"{key_of(prompts, message)}\n".encode())
        os.fsync(cls.log)
        cls.clock.tick("finished")
        return prediction


def key_of(prompts: dict[str, str], message: str) -> str:
    """What the program and the store both know of an evaluated example."""
    told = json.dumps([sorted(prompts.items()), message])
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def run(plan: dict[str, Any]) -> None:
    """One attempt. Writes `told.json` with what came of it, unless it is killed."""
    directory = Path(plan["directory"])
    rng = random.Random(plan["seed"])
    clock = Clock(_strikes(plan, directory))
    Counting.log = os.open(directory / "finished.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    Counting.clock = clock
    _trace_store(clock, plan.get("busy_seconds"))
    told: dict[str, Any] = {"result": None, "error": None}
    try:
        told["result"] = _compiled(Path(plan["runs"]), clock, rng)
    except OptimizerError as error:  # whatever else is raised is shown by the parent, with this process's output
        told["error"] = [type(error).__name__, str(error), traceback.format_exc()]
    told |= {"ticks": clock.counts, "left": _left()}
    os.close(Counting.log)
    text = json.dumps(told)
    with open(directory / "told.json.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(directory / "told.json.new", directory / "told.json")


def testing() -> list[dspy.Example]:
    """The test set."""
    return [toy.example(100 + number) for number in range(TEST)]


def student() -> dspy.Module:
    return Counting()


def _compiled(runs: Path, clock: Clock, rng: random.Random) -> dict[str, Any]:
    def answer(question: Asked) -> dict[str, object]:
        if rng.random() < 0.3:
            time.sleep(rng.random() * 0.004)  # so that examples finish in any order
        return toy.respond(question)

    def ask(prompt: str) -> str:
        clock.tick("prompt")
        return f"heard {prompt}"

    root = ScriptedRootLM([], idle="")
    root.engine = _Root(clock)
    optimizer = RLMDocstringOptimizer(
        root_lm=dspy.LM("offline/root", engine=root.engine, cache=False, num_retries=0),
        sub_lm=text_lm(ask, "sub"),
        eval_lm=field_lm(answer, "eval"),
        max_iterations=10,
        num_threads=4,
        rlm_max_iterations=500,
        run_storage_dir=runs,
        kernel=KernelInterpreter.factory(confinement="off", restarts=1000),
    )
    result: Any = optimizer.compile(
        student(),
        trainset=toy.trainset(TRAIN),
        valset=toy.valset(VAL),
        testset=testing(),
        metric=toy.metric,
        resume=True,
    )
    names = ("optimized_dspy_program", "best_run_id", "latest_run_id", "best_score", "baseline_run_id", "trial_logs")
    found = result.optimization_result.to_dict()
    for name in ("store_path", "usage", "seconds", "turns"):  # what a death adds to
        del found[name]
    return {**{name: getattr(result, name) for name in names}, "optimization_result": found}


class _Root:
    """The scripted agent's engine."""

    def __init__(self, clock: Clock) -> None:
        self._inner = ScriptedRootLM([next_turn] * 1000).engine
        self._clock = clock

    def complete(self, request: lm15.Request) -> lm15.Response:
        self._clock.tick("turn")
        return self._inner.complete(request)


# what strikes


def _strikes(plan: dict[str, Any], directory: Path) -> dict[tuple[str, int], Callable[[], None]]:
    strikes: dict[tuple[str, int], Callable[[], None]] = {}
    if plan.get("kill_at"):
        strikes["all", plan["kill_at"]] = lambda: _later(plan.get("delay", 0.0), _kill_self)
    for at in plan.get("kill_kernel_at", ()):
        strikes["agent", at] = lambda: _kill_kernels(directory)
    if plan.get("lock_at"):
        # Not at a statement: this process may hold the lock itself then.
        strikes["finished", plan["lock_at"]] = lambda: _wait_for_lock(directory)
    return strikes


def _later(seconds: float, strike: Callable[[], None]) -> None:
    if not seconds:
        strike()
    timer = threading.Timer(seconds, strike)
    timer.daemon = True
    timer.start()


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_kernels(directory: Path) -> None:
    """Kill kernel and guardian, and say so."""
    for process in kernels_of(psutil.Process()):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            with (directory / "killed.log").open("a") as file:
                file.write(f"{process.pid}\n")


def kernels_of(host: psutil.Process) -> list[psutil.Process]:
    """The kernels of a process."""
    found: list[psutil.Process] = []
    for child in host.children(recursive=True):
        try:
            if any("launch.json" in part for part in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def _wait_for_lock(directory: Path) -> None:
    """Let another process lock the store at this very moment."""
    (directory / "lock-it").touch()
    while not (directory / "locked").exists():
        time.sleep(0.002)


def _trace_store(clock: Clock, busy_seconds: float | None) -> None:
    """A tick before every statement that the store executes, within transactions too."""
    connect = database.connect

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(lambda _: clock.tick("statement"))
        return connection

    database.connect = store_file.connect = traced
    if busy_seconds is not None:
        database.BUSY_SECONDS = busy_seconds


def _left() -> list[str]:
    """What a compile that ended by itself has left running in this process."""
    deadline = time.monotonic() + 20
    while True:
        me = psutil.Process()
        threads = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
        sockets = [str(connection.laddr) for connection in me.net_connections("all")]
        children = [" ".join(child.cmdline()) for child in me.children() if child.status() != psutil.STATUS_ZOMBIE]
        left = [*(name for name in threads if name.startswith(("rlmoptimizer", "kernel"))), *sockets, *children]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def main() -> None:
    """One attempt in this process, whose plan is its argument."""
    plan = json.loads(sys.argv[1])
    output = os.open(Path(plan["directory"]) / "output.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    run(plan)
