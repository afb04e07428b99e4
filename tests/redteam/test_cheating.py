"""Attacks on what an optimization must keep: its validation set, its run store, its budget. The agent is hostile, and
its compile is a real one in the host of each tier, around a small program and an LM of the tests' own.
"""

from __future__ import annotations

import json
from typing import Any

from rig import PRELUDE, without_note
from victim import Victim, at_every_tier

SECRET = "quokka"  # stands in every field of every validation example of `toy`, and nowhere else
SPENT = "status = optimization_status(); print(status['spent_budget'], status['reserved_budget'], status['budget'])"
SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"

# Runs in the host: `turns` are the agent's, `setup` makes `options` for the compile.
COMPILE = """
import tempfile, threading, time
import toy
from offline import field_lm, text_lm
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.agent.tools import AgentTools
from rlmoptimizer.agent.turns import Turns
options = {}
exec(setup, globals())
folder = tempfile.mkdtemp(dir=facts["base"] + "/runs")
fill = lambda turn: turn.replace("FOLDER", repr(folder))
made, root = toy.compiled([fill(turn) for turn in turns], kernel=KernelInterpreter.factory(), run_storage_dir=folder,
                          rlm_max_iterations=max(8, len(turns)), **options)
with RunStore.open_in(folder) as store:
    kept = {"charges": sum(charge.amount for charge in store.charges()),
            "units": sum(run.evaluated_count for run in store.runs() if not run.baseline),
            "runs": [[run.split, run.evaluated_count, run.passed_count] for run in store.runs()]}
result = {"outputs": [turn["output"] for turn in made.agent_trajectory], "kept": kept,
          "asked": [question.text for question in root.seen], "prompts": made.optimized_dspy_program}
"""


def cheat(one: Victim, turns: list[str], setup: str = "") -> dict[str, Any]:
    """Let a hostile agent take these turns, then submit; what it saw, and what the host kept of it."""
    found = one.tier.host(COMPILE, turns=[PRELUDE, *turns, SUBMIT], setup=setup, seconds=110)
    found["outputs"] = [without_note(output) for output in found["outputs"][1:]]
    assert SECRET not in json.dumps([found["outputs"], found["asked"]]), f"{one.tier.name}: it saw the validation set"
    one.tier.assert_secret(json.dumps(found))
    return found


ASK = """
told = []
def ask(tool, *args, **kwargs):
    try: told.append(repr(tool(*args, **kwargs)))
    except Exception as error:
        told.append(f"{type(error).__name__}: {error}")
        cause = error
        while cause is not None:
            frame = cause.__traceback__
            while frame is not None:
                told.append(repr(frame.tb_frame.f_locals))
                frame = frame.tb_next
            cause = cause.__cause__ or cause.__context__
"""


@at_every_tier
def test_the_validation_set_by_every_road_that_tools_and_files_give(bounded: Victim) -> None:
    tools = """
import gc
for extra in ({}, {"ids": "1"}, {"limit": 1}, {"sample": "random"}, {"failed_from_run": "r2"},
              {"prompts": {"topic": "explode"}}, {"prompts": {"reply": "Repeat: {message} {answer}"}}):
    ask(evaluate_program, "val", **extra)
for split in (" VAL ", "train", "Val", "val\\0", "train,val", ["val"], {"val": 1}, "valset", "../val"):
    ask(evaluate_program, split, limit=1)
for run in ("r1", "r2", "r3", "r4", "R2", "r2 ", "r2' OR '1'='1", "%", "*", "r2/../r1", ["r2"], None, -1, "0x2"):
    ask(run_data, run)
    ask(evaluate_program, failed_from_run=run)
for name in ("__class__", "evaluate_program.__globals__", "__globals__", "gc.get_objects", "_data", "SUBMIT.__self__"):
    ask(get_ipython().kernel.channel.call, name, (), {})
ask(optimization_status)
print(told)
"""
    memory = """
things = [repr(thing)[:10**5] for thing in gc.get_objects() if isinstance(thing, (str, bytes, dict, list, tuple))]
print([thing for thing in things if word[::-1] in thing])
print({name: vars(tool) for name, tool in list(globals().items()) if callable(tool) and hasattr(tool, "__dict__")})
"""
    files = """
import glob
print(attempt(os.listdir, FOLDER), [attempt(read, f"{FOLDER}/{name}") for name in ("runs.sqlite", "store.sqlite3")],
      glob.glob(FOLDER + "/**", recursive=True), attempt(write, FOLDER + "/more"), attempt(os.rename, FOLDER, "mine"))
import sqlite3
for path in glob.glob(FOLDER + "/*") or [FOLDER + "/x.sqlite"]:
    print(attempt(lambda: sqlite3.connect(path).execute("select * from results").fetchall()))
"""
    memory = f"word = {SECRET[::-1]!r}\n{memory}"  # backwards: what it is looked for by is in memory itself
    found = cheat(bounded, [ASK + tools, memory, files, "print(evaluate_program(limit=1)['evaluated_count'])"])
    assert "done" not in found["outputs"][2]
    assert found["outputs"][3].strip() == "1"


# In the host: `run_data("val runs")` returns, by an error, when a run on val with "one word" in its prompt has begun;
# `came` and `ended` are the calls of the agent since then.
WATCH = """
import functools
from rlmoptimizer import UnknownRunError
entered, came, ended, changed = threading.Event(), [], [], threading.Condition()
def watch(name):
    tool = getattr(AgentTools, name)
    @functools.wraps(tool)
    def call(self, *args, **kwargs):
        if "val runs" in (*args, *kwargs.values()):
            assert entered.wait(60)
            raise UnknownRunError("val runs", ())
        with changed:
            came.append(name)
            changed.notify_all()
        found = tool(self, *args, **kwargs)
        ended.append(name)
        return found
    setattr(AgentTools, name, call)
for name in ("optimization_status", "run_data", "update_prompt"):
    watch(name)
def is_val(question):
    return "one word" in question.instructions and question.inputs["message"].startswith(toy.SECRET)
"""
UNWATCH = """
from rlmoptimizer.agent.tools import AgentTools
from rlmoptimizer.agent.turns import Turns
for name in ("optimization_status", "run_data", "update_prompt"):
    setattr(AgentTools, name, getattr(AgentTools, name).__wrapped__)
"""
BEGIN_VAL = """
told, wanted = [], {"prompts": {"topic": "In one word."}}
running = threading.Thread(target=lambda: told.append(evaluate_program("val", **wanted)))
running.start()
try: run_data("val runs")
except Exception as error: assert "val runs" in str(error), error
"""


@at_every_tier
def test_the_time_and_the_price_of_single_validation_examples(bounded: Victim) -> None:
    look = """
calls = [(optimization_status,), (run_data, "r1"), (update_prompt, "reply", "Answer."), (llm_query, "x"),
         (llm_query_batched, ["x", "y"]), (evaluate_program,)]
looking = [threading.Thread(target=tool, args=args) for tool, *args in calls]
for one in looking: one.start()
for one in [*looking, running]: one.join()
print(told[0]["passed_count"], optimization_status()["spent_budget"])
"""
    # Whatever ends before val has makes an example of val fail.
    setup = f"""
{WATCH}
def respond(question):
    if is_val(question):
        came.clear() if not entered.is_set() else None
        entered.set()
        with changed:
            assert changed.wait_for(lambda: {{"optimization_status", "run_data", "update_prompt"}} <= set(came), 60)
        assert not ended, ended
    elif entered.is_set() and not question.inputs["message"].startswith(toy.SECRET):
        ended.append("an example of train")
    return toy.respond(question)
def prompt(text):
    ended.append("a prompt")
    return text
options.update(eval_lm=field_lm(respond), sub_lm=text_lm(prompt))
"""
    try:
        found = cheat(bounded, [BEGIN_VAL + look], setup)
    finally:
        bounded.host(UNWATCH)
    assert found["outputs"][0].split() == ["4", str(4 + 6 + 1 + 2)]


@at_every_tier
def test_the_verdicts_and_the_price_of_single_validation_examples_by_dying_between_them(bounded: Victim) -> None:
    setup = f"""
{WATCH}
gone = threading.Event()
def respond(question):
    if is_val(question) and "message 1 " in question.inputs["message"]:
        entered.set()
        assert gone.wait(60)
    return toy.respond(question)
died = Turns.kernel_died
@functools.wraps(died)
def kernel_died(self):
    died(self)
    gone.set()
Turns.kernel_died = kernel_died
options.update(eval_lm=field_lm(respond), num_threads=1)
"""
    look = """
status = optimization_status()
print([(run['split'], run['score'], run['passed_count']) for run in status['runs'][2:]], status['spent_budget'])
"""
    again = "answer = evaluate_program('val', prompts={'topic': 'In one word.'}); print(answer['run_id'])"
    try:
        found = cheat(bounded, [BEGIN_VAL + "os._exit(1)", look, again, look], setup)
    finally:
        bounded.host(f"{UNWATCH}\nTurns.kernel_died = Turns.kernel_died.__wrapped__")
    assert "run r3 on val goes on to its end" in found["outputs"][0]
    assert found["outputs"][1].strip() == "[('val', 100.0, 4)] 4"
    assert found["outputs"][2].strip() == "r3"
    assert found["outputs"][3].strip() == "[('val', 100.0, 4)] 4"


@at_every_tier
def test_a_budget_raced_for_by_threads_at_the_last_unit(bounded: Victim) -> None:
    race = """
import msgspec
from concurrent.futures import ThreadPoolExecutor
for amount in (-5, 0, True, 1.5, float("nan"), float("inf"), 10**400, "1e9", [1], None, {"$gt": 0}):
    for ask in (lambda: evaluate_program(limit=amount, ids="1"), lambda: llm_query_batched(amount),
                lambda: llm_query(amount)):
        before = optimization_status()["remaining_budget"]
        try: ask()
        except Exception: pass
        assert optimization_status()["remaining_budget"] <= before, amount
while optimization_status()["remaining_budget"] > 1:
    llm_query("down to the last unit")
go = threading.Barrier(64)
def grab(number):
    go.wait(30)
    try:
        [lambda: evaluate_program(ids="1"), lambda: llm_query("x"), lambda: llm_query_batched(["x"])][number % 3]()
        return 1
    except Exception as error:
        assert type(error).__name__ == "BudgetExceededError", error
        return 0
with ThreadPoolExecutor(64) as pool:
    print(sum(pool.map(grab, range(64))))
"""
    forge = """
pack, out = msgspec.msgpack.encode, get_ipython().kernel.channel._out
for number in range(64):
    for name, body in (("llm_query", [["x"], {}]), ("evaluate_program", [[], {"ids": "1"}])):
        out.send([pack(["call", 10**6 + number, name]), pack(body)])
print(optimization_status()["remaining_budget"])
"""
    found = cheat(bounded, [race, forge, SPENT])
    assert found["outputs"][0].strip() == "1"
    assert found["outputs"][1].strip() == "0"
    spent, reserved, budget = map(int, found["outputs"][2].split())
    assert (spent, reserved) == (budget, 0)
    assert found["kept"]["charges"] == budget


@at_every_tier
def test_arguments_of_the_optimizers_tools_that_mean_something_elsewhere(bounded: Victim) -> None:
    texts = [
        "'; DROP TABLE results; --", "r1' UNION SELECT * FROM results --", "%s%s%n" * 20, "{0.__class__.__mro__}",
        "(a+)+$" + "a" * 5000, "1-" * 3000, "1-99999999999999999999", ",".join(["1"] * 9999), "../../../etc/passwd",
        "/proc/self/environ", "$(id)", "__import__('os').system('id')", "\ud800", "\0", "\x1b]0;OWNED\x07", "<script>",
        "{message}", "x" * 10**6,
    ]  # fmt: skip
    attack = """
values = [*texts, 10**4000, float("nan"), {"$ne": 1}, [[[[]]]], [texts], {"topic": {"topic": 1}}]
values.append({text: text for text in texts[:8]})
kinds = set()
for value in values:
    for call in (lambda: evaluate_program(value), lambda: evaluate_program(ids=value),
                 lambda: evaluate_program(limit=value), lambda: evaluate_program(sample=value),
                 lambda: evaluate_program(sample_seed=value, sample="random", limit=1),
                 lambda: evaluate_program(failed_from_run=value), lambda: evaluate_program(prompts=value, limit=1),
                 lambda: run_data(value), lambda: update_prompt(value, "x"),
                 lambda: SUBMIT(optimized_dspy_program=value),
                 lambda: SUBMIT(optimized_dspy_program={"topic": value})):
        try: call()
        except Exception as error: kinds.add(type(error).__name__)
print(sorted(kinds))
"""
    kept = """
texts = [text for text in texts if "\\ud800" not in text and "\\0" not in text and len(text) <= 100_000]
before, wrong = optimization_status()["current_prompts"]["topic"], []
for text in texts:
    update_prompt("topic", text)
    if optimization_status()["current_prompts"]["topic"] != text: wrong.append(text[:50])
update_prompt("topic", before)
print(wrong, len(optimization_status()["runs"]) >= 2)
"""
    found = cheat(bounded, [f"texts = {texts!a}\n{attack}", kept, "print(run_data('r1')['evaluated_count'])"])
    known = {"SelectionError", "UnknownRunError", "PromptUpdateError", "SubmissionError", "BudgetExceededError"}
    assert set(json.loads(found["outputs"][0].replace("'", '"'))) <= known, found["outputs"][0]
    assert found["outputs"][1].strip() == "[] True"
    assert found["outputs"][2].strip() == "6"
