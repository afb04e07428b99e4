"""Whole compiles whose examples run in other processes, with a real kernel: the same result, dollars and units."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import toy
from child_process import forked
from deadly import Deadly, Waits
from executor_runs import Provider, forked_pool, process_pool, provider
from offline import ScriptedRootLM
from priced import by_call, priced

from rlmoptimizer import InvalidSetup, WorkersLost
from rlmoptimizer.events import CompileStarted, Event
from rlmoptimizer.store.store_reader import StoreReader

TURNS = [
    f"""
update_prompt("topic", {toy.FIX!r})
train = evaluate_program("train")
val = evaluate_program("val")
print("scores", train["score"], val["score"], "asked", train["examples"][0]["steps"][0]["step_name"])
print(try_program({{"message": "message 9 plainly about bug"}})["steps"][0]["outputs"])
""",
    "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])",
]


@pytest.fixture(scope="module")
def served() -> Iterator[Provider]:
    with provider() as at:
        yield at


def compiled(served: Provider, turns: list[Any], metric: Any = toy.metric, **options: Any) -> Any:
    resume = {"resume": True} if options.pop("resume", False) else {}
    optimizer = toy.optimizer(ScriptedRootLM(turns), **{"eval_lm": served.lm(), **options})
    arguments = toy.arguments(metric=metric)
    return optimizer.compile(toy.Triage(), **arguments, **resume)


def told(result: Any) -> Any:
    logs = [(log["split"], log["score"], log["evaluated_count"], log["state"]) for log in result.trial_logs]
    return logs, result.optimized_dspy_program, result.usage["eval"], result.best_score


FORKS = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("make", [process_pool, pytest.param(forked_pool, marks=FORKS)])
def test_a_compile_on_a_process_pool_is_the_compile_in_threads(
    served: Provider, make: Callable[[], ProcessPoolExecutor]
) -> None:
    begun: list[Event] = []
    here = told(compiled(served, TURNS))
    there = compiled(served, TURNS, executor=make, callbacks=[begun.append])
    assert told(there) == here
    assert there.usage["eval"]["calls"] == 2 * (6 + 4) * 2 + 2  # baseline and new prompts, two steps, and one trial
    assert there.usage["eval"]["cost_usd"] > 0
    assert "asked topic" in str(there.agent_trajectory)
    (head,) = (one for one in begun if isinstance(one, CompileStarted))
    assert head.executor == f"made by executor_runs.{make.__name__}"


def test_dollars_of_other_processes_are_refused_and_spent_as_those_of_threads(served: Provider) -> None:
    turns = [
        """
for number in range(1, 7):
    try:
        print(evaluate_program("train", ids=[str(number)])["run_id"])
    except CostExceededError as refused:
        print("refused", number)
""",
        TURNS[1],
    ]
    baseline = compiled(served, [TURNS[1]]).usage["eval"]
    limit = baseline["cost_usd"] * 1.35  # ten examples, and three of the six

    def run(**options: Any) -> Any:
        root = ScriptedRootLM(turns)
        priced_root = priced(root.engine, "root", price=by_call(1e-9))
        return compiled(served, turns, root_lm=priced_root, rlm_max_llm_calls=0, max_cost_usd=limit, **options)

    asked = served.asked
    here, between = run(), served.asked
    there = run(executor=process_pool)
    assert told(there) == told(here)
    assert served.asked - between == between - asked == there.usage["eval"]["calls"]  # all that ran is counted
    assert there.agent_trajectory[0]["output"] == here.agent_trajectory[0]["output"]
    assert "refused 6" in there.agent_trajectory[0]["output"]
    assert baseline["cost_usd"] < there.cost_usd <= limit


INTERRUPTED = """
import sys
from pathlib import Path
from types import SimpleNamespace
import toy
from deadly import Waits
from executor_runs import Provider, process_pool
from offline import ScriptedRootLM

url, directory = sys.argv[1], Path(sys.argv[2])
lm = Provider(SimpleNamespace(url=url)).lm()
optimizer = toy.optimizer(
    ScriptedRootLM([]), eval_lm=lm, executor=process_pool, num_threads=2, run_storage_dir=directory / "runs"
)
optimizer.compile(toy.Triage(), **toy.arguments(metric=Waits(directory / "waits", "message 4 ")))
"""


def test_ctrl_c_leaves_no_worker_behind_and_keeps_what_they_have_done(
    served: Provider, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    where = tmp_path / "runs"
    with forked(INTERRUPTED, served.server.url, tmp_path) as child:
        wait_until((tmp_path / "waits").exists, "a worker is at work", 100)
        with StoreReader.open_in(where) as store:
            wait_until(lambda: store.evaluated_examples() >= 4, "all others are stored", 100)
        started = psutil.Process(child.pid).children(recursive=True)
        assert int((tmp_path / "waits").read_text()) in {process.pid for process in started}
        child.send_signal(signal.SIGINT)
        ended = child.ended()
    assert ended.status == -signal.SIGINT, ended.err
    assert ended.err.count("RLMDocstringOptimizer stopped (KeyboardInterrupt).") == 1
    _, left = psutil.wait_procs(started, timeout=60)
    assert left == []
    asked = served.asked
    result = compiled(served, TURNS, Waits(tmp_path / "waits", "message 4 "), run_storage_dir=where, resume=True)
    assert [log["evaluated_count"] for log in result.trial_logs] == [6, 4, 6, 4]
    assert served.asked - asked <= 42 - 2 * 4  # what was stored did not run again


def test_what_a_broken_executor_has_done_is_kept_and_another_goes_on(served: Provider, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    metric = Deadly(deaths, "message 4 ")
    where = tmp_path / "runs"
    with process_pool(1) as executor, pytest.raises(WorkersLost, match="resume=True"):
        compiled(served, TURNS, metric, executor=executor, run_storage_dir=where)
    asked = served.asked
    result = compiled(served, TURNS, metric, executor=None, run_storage_dir=where, resume=True)
    assert [log["evaluated_count"] for log in result.trial_logs] == [6, 4, 6, 4]
    assert served.asked - asked < 42  # what was stored did not run again


def test_what_cannot_go_to_a_worker_is_refused_before_anything_is_asked(served: Provider) -> None:
    asked, root = served.asked, ScriptedRootLM(TURNS)
    student = toy.Triage()
    student.reply.lock = threading.Lock()
    optimizer = toy.optimizer(root, eval_lm=served.lm(), executor=process_pool)
    with pytest.raises(InvalidSetup, match=r"^'lock' of 'self\.reply' of the student, a lock, cannot be sent"):
        optimizer.compile(student, **toy.arguments())
    assert root.seen == []
    assert served.asked == asked
    report = optimizer.check(student, **toy.arguments())
    assert any("'lock' of 'self.reply'" in problem for problem in report.problems)
