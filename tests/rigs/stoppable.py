"""A compile in a process of its own that says when it has come to a certain point, and stays there.

Whoever started it then kills it, interrupts it or lets it be. It prints "at POINT" when it is there; interrupted there,
it goes on to the next one. Of an evaluation it is there once all results that came before are stored, so that a kill
loses none of them. It prints the result as JSON when it has one. Every call of the program's last step is a
line in `DIRECTORY/ran.txt`, written by the program itself. The agent goes on with whatever turn comes next, by what it
is told of the earlier ones.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import toy
from child_process import forked
from offline import Asked, ScriptedRootLM, field_lm, text_lm

from rlmoptimizer.agent.kernels import AgentKernels
from rlmoptimizer.outcome.ending import Outcome
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.store.run_store import RunStore

# An index is a turn; see `agent`.
TURNS = [
    'notes = {"tries": [evaluate_program(limit=2)["run_id"]]}',
    f'trial = evaluate_program(prompts={{"topic": {toy.FIX!r}}})\nprint(trial["run_id"], trial["score"])',
    f'update_prompt("topic", {toy.FIX!r})\nprint(evaluate_program("val")["score"])',
    'said = llm_query_batched(["what now?"])\nprint(said)',
    "llm_query('in the cell')\nwhile PLEASE_WAIT: pass",
    'SUBMIT(optimized_dspy_program=optimization_status()["current_prompts"])',
]
SUBMITTED = f"{toy.FIX} Nothing else."  # with `unchecked`: never run before it is submitted
TEST_MARK = "wombat "  # in every field of every test example
TIMEOUT = 60
POINTS = (
    "created", "baseline", "evaluation", "thinking", "validation", "sub-lm", "cell", "final-check", "test", "submitted",
    "shutdown",
)  # fmt: skip


class Stops:
    """Where the process stays."""

    def __init__(self, points: str) -> None:
        self.points = points.split(",")
        self._lock = threading.Lock()

    def at(self, point: str, *, stay: bool = True, after: Callable[[], None] = lambda: None) -> None:
        """Say that this is the point, if it is the next one, and stay there for ever. `after` is called before."""
        with self._lock:
            if self.points[:1] != [point]:
                return
            after()
            self.points.pop(0)
            print(f"at {point}", flush=True)
        if stay:
            threading.Event().wait()


class Results:
    """How many results of this process are stored, of those that came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._came = 0
        self._stored = 0
        append = RunStore.append

        def counted(store: RunStore, run_id: str, *results: ExampleResult, **options: Any) -> None:
            append(store, run_id, *results, **options)
            with self._changed:
                self._stored += len(results)
                self._changed.notify_all()

        RunStore.append = counted  # type: ignore[method-assign]

    def come(self) -> None:
        """One is there, or will be at once."""
        with self._changed:
            self._came += 1

    def wait_stored(self) -> None:
        """Wait until all that came are stored."""
        with self._changed:
            came = self._came
            if not self._changed.wait_for(lambda: self._stored >= came, TIMEOUT):
                raise TimeoutError(f"{self._stored} of {came} results are stored after {TIMEOUT} s")


@dataclass(frozen=True, slots=True)
class Ran:
    """A process that has ended."""

    status: int
    err: str
    result: dict[str, Any] | None  # attributes of the program that it got; None: it got none


class Running:
    """A process that runs this module's compile."""

    def __init__(self, directory: Path, point: str = "-", **options: Any) -> None:
        directory.mkdir(exist_ok=True)
        self.points = point.split(",")
        self.process = forked("import stoppable; stoppable.main()", directory, point, json.dumps(options))

    def wait_there(self) -> None:
        """Wait until it is at its next point."""
        self.process.wait_for(f"at {self.points.pop(0)}")

    def stop(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> Ran:
        """Wait for its end."""
        ended = self.process.ended()
        found = [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
        return Ran(ended.status, ended.err, found[0] if found else None)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.__exit__(*error)


def killed(directory: Path, point: str, **options: Any) -> None:
    """Run until the point and kill it there, with its whole process only."""
    with Running(directory, point, **options) as running:
        running.wait_there()
        running.stop(signal.SIGKILL)
        assert running.ended().status == -signal.SIGKILL


def finished(directory: Path, **options: Any) -> dict[str, Any]:
    """Run to the end; gives the attributes of the program that came out."""
    with Running(directory, **options) as running:
        ran = running.ended()
    assert ran.result is not None, ran.err
    return ran.result


def lines_of(directory: Path) -> list[str]:
    """What the program itself wrote about its calls."""
    return (directory / "ran.txt").read_text().splitlines()


def agent(stops: Stops, turns: list[str]) -> ScriptedRootLM:
    answered = [0]

    def turn(asked: Asked) -> str:
        done = re.search(r"goes on: (\d+) of", asked.text)
        cut = " was cut: previous_trajectory" in asked.text
        index = (int(done[1]) if done else 0) - cut + answered[0]
        if index == 2:
            stops.at("thinking")
        answered[0] += 1
        return turns[index].replace("PLEASE_WAIT", str("cell" in stops.points))

    return ScriptedRootLM([turn] * 20)


def compiled(
    directory: Path, point: str, *, test: int = 0, unchecked: bool = False, plain: bool = False, **options: Any
) -> Any:
    """Compile in this process.

    `test`: examples of a test set. `unchecked`: it submits what was never run. `plain`: the agent works in DSPy's own
    REPL instead of a kernel, where that makes no difference.
    """
    stops, results = Stops(point), Results()
    leases: list[AgentKernels] = []
    start = AgentKernels.start
    AgentKernels.start = lambda self, on_failure: (leases.append(self), start(self, on_failure))[1]  # type: ignore[method-assign]
    ran = (directory / "ran.txt").open("a", buffering=1)

    def respond(question: Asked) -> dict[str, object]:
        fixed = "one word" in question.instructions
        message = question.inputs["message"]
        if question.outputs == ("topic",) and message.startswith("message 3"):
            if "baseline" in stops.points:
                leases[0].wait_started()  # a process that is killed while its kernel starts may leave a directory
            stops.at("evaluation" if fixed else "baseline", after=results.wait_stored)
        if fixed and question.outputs == ("topic",) and message.startswith(f"{toy.SECRET} message 3"):
            stops.at("final-check" if question.instructions == SUBMITTED else "validation", after=results.wait_stored)
        if fixed and question.outputs == ("topic",) and message.startswith(f"{TEST_MARK}message 3"):
            stops.at("test", after=results.wait_stored)
        answer = toy.respond(question)
        if question.outputs == ("answer",):
            ran.write(f"{question.inputs['topic']}|{message}\n")
            results.come()
            if message.startswith(TEST_MARK):
                answer = {"answer": f"{TEST_MARK}{answer['answer']}"}
        return answer

    def sub(prompt: str) -> str:
        if prompt == "what now?":
            stops.at("sub-lm")
        else:
            stops.at("cell", stay=False)
        return f"heard: {prompt}"

    if point == "created":
        RunStore.record_setup = lambda self, setup: stops.at("created")  # type: ignore[assignment,method-assign,return-value]
    if "shutdown" in point:
        close = AgentKernels.close
        AgentKernels.close = lambda self: (stops.at("shutdown"), close(self))[1]  # type: ignore[method-assign]
    if point == "submitted":
        Outcome.record = lambda self, store: stops.at("submitted")  # type: ignore[assignment,method-assign,return-value]
    turns = [*TURNS]
    if unchecked:
        turns[-1] = f'SUBMIT(optimized_dspy_program={ {"topic": SUBMITTED, "reply": "Answer by the topic."} !r})'
    held_out = [toy.example(number, marker=TEST_MARK) for number in range(test)] or None
    own: dict[str, Any] = {"sub_lm": text_lm(sub, "sub"), "num_threads": 1}
    if plain:
        own["kernel"] = dspy.LocalInterpreter
    for name in ("root_lm", "sub_lm"):
        if name in options:  # the address of a server
            options[name] = dspy.LM("openai/held", api_base=options[name], api_key="none", cache=False)
    optimizer = toy.optimizer(
        agent(stops, turns),
        eval_lm=field_lm(respond, "eval"),
        run_storage_dir=directory,
        rlm_max_iterations=20,
        **{**own, **options},
    )
    try:
        return optimizer.compile(
            toy.Triage(),
            trainset=toy.trainset(),
            valset=toy.valset(),
            testset=held_out,
            metric=toy.metric,
            resume=True,
        )
    finally:
        ran.close()


ATTRIBUTES = (
    "optimized_dspy_program",
    "latest_run_id",
    "best_run_id",
    "best_score",
    "baseline_run_id",
    "trial_logs",
    "agent_trajectory",
    "agent_final_reasoning",
    "usage",
    "cost_usd",
)


def attributes(program: Any) -> dict[str, Any]:
    result = program.optimization_result.to_dict()
    return {**{name: getattr(program, name) for name in ATTRIBUTES}, "optimization_result": result}


def main() -> None:
    program = compiled(Path(sys.argv[1]), sys.argv[2], **json.loads(sys.argv[3]))
    print(json.dumps(attributes(program)), flush=True)
