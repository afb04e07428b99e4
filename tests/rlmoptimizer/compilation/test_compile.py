"""Whole compiles with an agent that does what agents do, and much that none should."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import psutil
import pytest
import toy
from dspy.lm15 import AuthError
from offline import Asked, ScriptedRootLM, field_lm, text_lm
from responses_server import ResponsesServer, turn

from kernel_bridge import KernelInterpreter, Limits
from rlmoptimizer.agent import turns
from rlmoptimizer.errors import notes_of
from rlmoptimizer.store.run_store import RunStore

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
SPENT = "print(optimization_status()['spent_budget'])"


def outputs(result: Any) -> list[str]:
    return [turn["output"].strip() for turn in result.agent_trajectory]


Left = Callable[[], "list[psutil.Process]"]


@pytest.fixture
def kernels_left() -> Left:
    """The processes that have been started since the test began and still run: others may be kept by other tests."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: [process for process in psutil.Process().children(recursive=True) if process not in before]


# the main job


@pytest.mark.smoke
def test_an_agent_improves_a_program() -> None:
    result, _ = toy.compiled(
        [
            # Read the baseline, group the failures by the first step that went wrong.
            """
from collections import Counter
base = run_data(baseline_runs["train"]["run_id"])
failed = [e for e in base["examples"] if not e["passed"]]
def first_wrong(e):
    wrong = (s["step_name"] for s in e["steps"] for k, v in s["outputs"].items() if v != e["expected"].get(k))
    return next(wrong, None)
groups = Counter(map(first_wrong, failed))
print(groups)
""",
            # Ask about them, try a candidate on what failed.
            f"""
notes = llm_query_batched([f"What is wrong with {{e['predicted']}}?" for e in failed])
fix = {toy.FIX!r}
trial = evaluate_program(failed_from_run=base["run_id"], prompts={{"topic": fix}})
print(len(notes), trial["summary_line"])
""",
            # Set it, look at the rest, checkpoint.
            """
update_prompt("topic", fix)
passed = ",".join(e["example_id"] for e in base["examples"] if e["passed"])
print(evaluate_program(ids=passed)["summary_line"])
print(evaluate_program("val")["summary_line"])
""",
            SUBMIT,
        ]
    )
    said = outputs(result)
    assert said[0] == "Counter({'topic': 3})"
    assert said[1] == "3 run r3 on train: score 100.00 (95% interval 44-100), 3/3 passed; 28 budget units left"
    val = "run r5 on val: score 100.00 (95% interval 51-100), 4/4 passed; 21 budget units left"
    assert said[2].splitlines()[1] == val
    assert result.optimized_dspy_program["topic"] == toy.FIX


def test_an_agent_without_budget_can_still_think_and_submit() -> None:
    result, _ = toy.compiled(
        [
            "while optimization_status()['remaining_budget'] >= 6:\n    evaluate_program()",
            "try:\n    evaluate_program()\nexcept Exception as e:\n    print(type(e).__name__, e)",
            "try:\n    llm_query_batched(['a'] * 9)\nexcept Exception as e:\n    print(type(e).__name__, e)",
            "evaluate_program(limit=optimization_status()['remaining_budget'])",
            "try:\n    llm_query('a')\nexcept Exception as e:\n    print(type(e).__name__, e)",
            SPENT,
            SUBMIT,
        ]
    )
    said = outputs(result)
    assert said[1] == "BudgetExceededError asked for 6 units, 4 left; pass fewer ids or a limit of 4"
    assert said[2] == "BudgetExceededError asked for 9 units, 4 left; send at most 4 prompts"
    assert said[4].startswith("BudgetExceededError asked for 1 unit, 0 left")
    assert said[5] == "34"
    assert result.trial_logs[-1]["remaining_budget"] == 0


# every road to the sub-LM


def test_every_prompt_to_the_sub_lm_costs_one_unit_whichever_way_it_goes() -> None:
    def respond(question: Asked) -> dict[str, object]:
        if "code" in question.outputs:  # a sub-agent with a REPL of its own
            asked_sub = "import dspy\nx = llm_query('from inside')\nprint(x)"
            code = asked_sub if "from inside" not in question.text else "SUBMIT(answer='done')"
            return {"reasoning": "r", "code": f"```python\n{code}\n```"}
        return dict.fromkeys(question.outputs or ("answer",), "fine")

    sub = field_lm(respond, "sub")
    result, _ = toy.compiled(
        [
            f"llm_query('a'); {SPENT}",
            f"llm_query_batched(['a', 'b', 'c']); {SPENT}",
            f"import dspy; print(dspy.Predict('question -> answer')(question='q').answer); {SPENT}",
            f"print(dspy.RLM('question -> answer', max_iters=4)(question='q').answer); {SPENT}",
            SUBMIT,
        ],
        sub_lm=sub,
        sub_agents=True,
    )
    said = outputs(result)
    assert said[0] == "1"
    assert said[1] == "4"
    assert said[2].splitlines() == ["fine", "5"]
    # two turns of the sub-agent and the one prompt that it sent itself
    assert said[3].splitlines() == ["done", "8"]
    assert sub.engine.calls == 8  # type: ignore[attr-defined]


def test_sub_agents_cannot_spend_more_than_there_is() -> None:
    sub = field_lm(lambda question: dict.fromkeys(question.outputs or ("answer",), "fine"), "sub")
    code = """
import dspy
asked = 0
try:
    while True:
        dspy.Predict("question -> answer")(question=str(asked))
        asked += 1
except Exception as e:
    print(asked, type(e).__name__)
"""
    result, _ = toy.compiled([code, SPENT, SUBMIT], sub_lm=sub, max_iterations=1, sub_agents=True)
    assert outputs(result)[:2] == ["10 BudgetExceededError", "10"]
    assert sub.engine.calls == 10  # type: ignore[attr-defined]


def test_several_completions_of_one_prompt_cost_one_each() -> None:
    sub = field_lm(lambda question: dict.fromkeys(question.outputs or ("answer",), "fine"), "sub")
    code = "import dspy; dspy.Predict('question -> answer', n=3, temperature=1.0)(question='q')"
    result, _ = toy.compiled([code, SPENT, SUBMIT], sub_lm=sub, sub_agents=True)
    assert outputs(result)[1] == "3"


def test_the_ceiling_on_sub_lm_prompts_holds_beside_the_budget() -> None:
    code = "try:\n    {}\nexcept Exception as e:\n    print(type(e).__name__, e)"
    result, _ = toy.compiled(
        [
            code.format("llm_query_batched(['a', 'b', 'c'])"),
            code.format("llm_query('a')"),
            code.format("llm_query_batched(['a', 'b'])"),
            SPENT,
            SUBMIT,
        ],
        rlm_max_llm_calls=2,
    )
    said = outputs(result)
    assert "rlm_max_llm_calls" in said[0]
    assert "rlm_max_llm_calls" in said[2]
    assert said[3] == "1"


@pytest.mark.usefixtures("plain_repl")
def test_the_root_lm_answers_sub_lm_prompts_when_there_is_no_sub_lm() -> None:
    root = ScriptedRootLM(["print(llm_query('who are you?'))", SUBMIT], extract={"said": "the root"})
    result = toy.optimizer(root, sub_lm=None).compile(
        toy.Triage(), trainset=toy.trainset(), metric=toy.metric, valset=toy.valset()
    )
    assert "the root" in outputs(result)[0]
    assert result.trial_logs[-1]["remaining_budget"] == 34


@pytest.mark.usefixtures("plain_repl")
def test_a_sub_lm_that_fails_is_told_to_the_agent_and_the_compile_goes_on() -> None:
    def fail(prompt: str) -> str:
        raise AuthError("no such key")

    result, _ = toy.compiled(
        ["try:\n    llm_query('a')\nexcept Exception as e:\n    print('told:', e)", SPENT, SUBMIT], sub_lm=text_lm(fail)
    )
    assert "no such key" in outputs(result)[0]
    assert outputs(result)[1] == "1"  # it was sent


# threads


def test_a_sub_lm_that_exits_is_told_to_the_agent_and_the_compile_goes_on() -> None:
    def exits(prompt: str) -> str:
        raise SystemExit(3) if "quit" in prompt else GeneratorExit

    code = """
try:
    print(llm_query("quit"))
except Exception as e:
    print(type(e).__name__, "SystemExit: 3" in str(e))
print(llm_query_batched(["a", "b"]))
"""
    result, _ = toy.compiled([code, SUBMIT], sub_lm=text_lm(exits))
    first, second = outputs(result)[0].splitlines()
    assert first == "LMError True"
    assert second.count("[ERROR]") == second.count("GeneratorExit") == 2


def test_a_program_that_interrupts_ends_the_compile_and_the_example_is_named(
    capfd: pytest.CaptureFixture[str], kernels_left: Left
) -> None:
    class Interrupts(toy.Triage):
        def forward(self, message: str) -> dspy.Prediction:
            if "explode" in self.topic.signature.instructions and "message 1 " in message:
                raise KeyboardInterrupt
            return super().forward(message)

    with pytest.raises(KeyboardInterrupt) as raised:
        toy.compiled(["evaluate_program(ids='2', prompts={'topic': 'explode'})"], student=Interrupts())
    assert "Raised while example 2 of trainset was evaluated" in notes_of(raised.value)
    assert "KeyboardInterrupt: Raised while example 2 of trainset was evaluated" in capfd.readouterr().err
    assert not kernels_left()


def test_sixty_four_threads_of_the_agent_spend_the_budget_to_the_last_unit_and_no_further(tmp_path: Path) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
def grab(n):
    try:
        llm_query(str(n)) if n % 2 else evaluate_program(ids=n % 6 + 1)
        return 1
    except Exception as e:
        assert type(e).__name__ == "BudgetExceededError", e
        return 0
with ThreadPoolExecutor(64) as pool:
    print(sum(pool.map(grab, range(64))))
status = optimization_status()
print(status["spent_budget"], status["reserved_budget"], status["remaining_budget"])
"""
    result, _ = toy.compiled([code, SUBMIT], run_storage_dir=tmp_path)
    assert outputs(result)[0].splitlines() == ["34", "34 0 0"]
    with RunStore.open_in(tmp_path) as store:
        paid = {purpose: 0 for purpose in ("evaluate", "llm_query")}
        for charge in store.charges():
            paid[charge.purpose] += charge.amount
        assert sum(paid.values()) == 34
        assert paid["evaluate"] == sum(run.evaluated_count for run in store.runs() if not run.baseline)


def test_candidates_compared_from_threads_do_not_touch_each_other() -> None:
    code = f"""
from concurrent.futures import ThreadPoolExecutor
candidates = [{{"topic": {toy.FIX!r}}}, None, {{"topic": "explode"}}, {{"topic": "In one word."}}]
with ThreadPoolExecutor(4) as pool:
    print([r["score"] for r in pool.map(lambda p: evaluate_program(prompts=p), candidates)])
"""
    result, _ = toy.compiled([code, SUBMIT])
    assert outputs(result)[0] == "[100.0, 50.0, 0.0, 100.0]"


def gated_eval_lm(examples: int = 1) -> tuple[dspy.LM, threading.Event, threading.Event]:
    """An eval LM that waits at a prompt with "wait" until the gate opens; says when so many examples are there."""
    entered, gate = threading.Event(), threading.Event()
    waiting = threading.Semaphore(examples - 1)

    def respond(question: Asked) -> dict[str, object]:
        if "wait" in question.instructions:
            if not waiting.acquire(blocking=False):
                entered.set()
            assert gate.wait(60)
        return toy.respond(question)

    return field_lm(respond, "gated"), entered, gate


START_WAITING = """
import threading
t = threading.Thread(target=evaluate_program, kwargs={"limit": 4, "prompts": {"topic": "wait"}})
t.start()
llm_query("has it begun?")
"""


def test_a_kernel_that_dies_in_the_middle_of_an_evaluation_leaves_the_run_and_the_ledger_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "_CUT_SECONDS", 1.0)  # the gate opens after that
    lm, entered, gate = gated_eval_lm(4)

    def sub(prompt: str) -> str:
        assert entered.wait(60)
        return "yes"

    def then(question: Asked) -> str:
        gate.set()
        return "import time\nwhile optimization_status()['reserved_budget']:\n    time.sleep(0.01)\nprint('settled')"

    result, _ = toy.compiled(
        [
            START_WAITING + "import os; os._exit(9)",
            then,
            "s = optimization_status(); print(s['spent_budget'], s['runs'][-1]['evaluated_count'])",
            "print(run_data('r3')['summary_line'])",
            SUBMIT,
        ],
        eval_lm=lm,
        sub_lm=text_lm(sub),
    )
    said = outputs(result)
    assert "The kernel died" in said[0]
    assert said[1] == "settled"
    assert said[2] == "5 4"
    assert said[3].startswith("run r3 on train: score 50.00 (95% interval 15-85), 2/4 passed")
    assert result.trial_logs[2]["remaining_budget"] == 34 - 5


def test_an_evaluation_left_running_at_submission_is_stopped_and_paid_for_what_it_did() -> None:
    lm, entered, gate = gated_eval_lm()

    def sub(prompt: str) -> str:
        assert entered.wait(60)
        return "yes"

    class Interpreter(KernelInterpreter):
        def shutdown(self) -> None:
            gate.set()  # by now nothing new is begun
            super().shutdown()

    result, _ = toy.compiled(
        [START_WAITING, f"SUBMIT(optimized_dspy_program={ {'topic': 'a', 'reply': 'b'}!r})"],
        eval_lm=lm,
        sub_lm=text_lm(sub),
        num_threads=1,
        kernel=lambda: Interpreter(confinement="off"),
    )
    run = result.trial_logs[2]
    assert (run["run_id"], run["state"]) == ("r3", "cancelled")
    assert run["evaluated_count"] < 4
    assert run["remaining_budget"] == 34 - 1 - run["evaluated_count"]


# what the agent's code may do to its kernel

DEADLY = {
    "exit": "import os; os._exit(3)",
    "segfault": "import ctypes; ctypes.string_at(0)",
    "kill": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "kill mid-tool": "import os, signal, threading\n"
    "threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()\n"
    # Many examples may be done by then, even all that the budget pays for.
    "while True:\n    try:\n        evaluate_program(limit=1)\n"
    "    except Exception:\n        optimization_status()",
    "endless loop": "while True:\n    pass",
    "loop that keeps interrupts out": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\nwhile True:\n    pass",
    "flood": "line = 'x' * 1000\nfor _ in range(100_000):\n    print(line)",
    "recursion": "def f(): return f()\nf()",
    "system exit": "raise SystemExit(1)",
}


IN_ONE_COMPILE = [
    ["exit", "segfault", "kill"],
    ["kill mid-tool"],
    ["endless loop", "loop that keeps interrupts out"],
    ["flood", "recursion", "system exit"],
]
assert sorted(itertools.chain(*IN_ONE_COMPILE)) == sorted(DEADLY)


@pytest.mark.parametrize("names", IN_ONE_COMPILE, ids=", ".join)
def test_whatever_happens_to_the_kernel_the_compile_finishes_with_an_exact_ledger(names: list[str]) -> None:
    # A cell that ends by itself must not be ended by a machine that stands still for a while.
    seconds = 3.0 if "endless loop" in names else 100.0
    kernel = KernelInterpreter.factory(confinement="off", limits=Limits(cell_seconds=seconds))
    turns = [turn for name in names for turn in (DEADLY[name], "print(kept)", SPENT)]
    result, _ = toy.compiled(
        ["kept = evaluate_program(limit=2)['run_id']", *turns, SUBMIT], kernel=kernel, rlm_max_iterations=11
    )
    said = outputs(result)[1:]
    evaluated = sum(log["evaluated_count"] for log in result.trial_logs if not log["baseline"])
    for number in range(len(names)):
        ended, kept, spent = said[3 * number : 3 * number + 3]
        assert ended
        assert kept == "r3"
        assert int(spent) == evaluated
    assert result.trial_logs[-1]["remaining_budget"] == 34 - evaluated


def test_an_agent_that_kills_its_kernel_for_ever_gets_the_best_run_taken(caplog: pytest.LogCaptureFixture) -> None:
    found = f"evaluate_program('val', prompts={{'topic': {toy.FIX!r}}})"
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        result, root = toy.compiled([found], rlm_max_iterations=20, idle="import os; os._exit(1)")
    assert result.optimized_dspy_program["topic"] == toy.FIX
    assert "interpreter is lost" in caplog.text
    assert len(root.seen) < 20


def test_an_agent_that_breaks_its_own_tools_only_hurts_itself() -> None:
    result, _ = toy.compiled(
        [
            "evaluate_program = run_data = optimization_status = llm_query = None\ndel update_prompt",
            "print(evaluate_program(limit=1)['evaluated_count'])",
            SUBMIT,
        ]
    )
    assert outputs(result)[1] == "1"


def test_big_values_cross_both_ways() -> None:
    long = "word " * 19_000
    result, _ = toy.compiled(
        [
            f"text = {toy.FIX!r} + 'word ' * 19_000\nprint(update_prompt('topic', text)['changed'])",
            "print(len(optimization_status()['current_prompts']['topic']), evaluate_program(limit=2)['score'])",
            SUBMIT,
        ]
    )
    assert outputs(result)[0] == "True"
    assert outputs(result)[1] == f"{len(toy.FIX) + len(long)} 100.0"
    assert len(result.topic.signature.instructions) == len(toy.FIX) + len(long)


# val


def test_nothing_of_val_reaches_the_agent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    result, root = toy.compiled(
        [
            "print(evaluate_program('val'), evaluate_program('val', prompts={'topic': 'explode'}))",
            "print(run_data('r2'), run_data('r4'), optimization_status())",
            "print(evaluate_program(failed_from_run='r4'))",
            "print(evaluate_program('val', ids='1', limit=1, failed_from_run='r1')['examples'])",
            "print({k: v for k, v in globals().items() if not k.startswith('__')})",
            SUBMIT,
        ],
        run_storage_dir=tmp_path,
    )
    assert "SelectionError" in outputs(result)[2]
    assert "val always runs whole" in outputs(result)[3]
    for question in root.seen:
        assert toy.SECRET not in question.text
    for told in (result.agent_trajectory, result.trial_logs, result.optimized_dspy_program):
        assert toy.SECRET not in repr(told)
    ours = [record for record in caplog.records if record.name.startswith(("rlmoptimizer", "kernel_bridge"))]
    assert not [record for record in ours if toy.SECRET in record.getMessage()]
    with RunStore.open_in(tmp_path) as store:
        kept = store.events(), store.iterations(), [(run.config, run.prompts) for run in store.runs()]
        assert toy.SECRET not in repr(kept)


# how it can be stopped


def test_the_root_lms_own_error_is_raised_and_nothing_is_left(tmp_path: Path, kernels_left: Left) -> None:
    error = AuthError("the key has expired")
    with pytest.raises(dspy.LMError, match="the key has expired"):
        toy.compiled(["evaluate_program(limit=2)", error], run_storage_dir=tmp_path)
    assert not kernels_left()
    with RunStore.open_in(tmp_path) as store:
        assert [run.evaluated_count for run in store.runs()] == [6, 4, 2]


def test_an_interrupt_while_the_root_lm_thinks_goes_through_and_nothing_is_left(kernels_left: Left) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy.compiled(["evaluate_program(limit=2)", KeyboardInterrupt()])
    assert not kernels_left()


def test_an_interrupt_while_the_agents_code_runs_goes_through_and_nothing_is_left(kernels_left: Left) -> None:
    def press(prompt: str) -> str:
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
        return "pressed"

    with pytest.raises(KeyboardInterrupt):
        toy.compiled(["llm_query('press')\nimport time\ntime.sleep(60)"], sub_lm=text_lm(press))
    assert not kernels_left()


def test_a_failure_on_the_host_stops_the_agent_at_once_and_is_raised_to_the_caller(
    tmp_path: Path, kernels_left: Left
) -> None:
    def spoil(prompt: str) -> str:
        (path,) = tmp_path.glob("*.sqlite")
        import sqlite3

        with sqlite3.connect(path) as database:
            database.execute("DROP TABLE results")
        database.close()
        return "spoiled"

    code = """
import time
llm_query("spoil")
try:
    evaluate_program(limit=1)
except Exception as e:
    print(type(e).__name__)
time.sleep(1000)
"""
    with pytest.raises(Exception, match="results") as stopped:
        toy.compiled([code, SUBMIT], sub_lm=text_lm(spoil), run_storage_dir=tmp_path)
    assert not isinstance(stopped.value, AssertionError)
    assert not kernels_left()


def test_nothing_is_left_of_a_compile_with_sub_agents(kernels_left: Left) -> None:
    sub = field_lm(
        lambda question: {"reasoning": "r", "code": "```python\nSUBMIT(answer='x')\n```", "answer": "x"}, "sub"
    )
    code = "import dspy\nagents = [dspy.RLM('q -> answer') for _ in range(2)]\nprint([a(q='x').answer for a in agents])"
    result, _ = toy.compiled([code, SUBMIT], sub_lm=sub, sub_agents=True)
    assert outputs(result)[0] == "['x', 'x']"
    assert not kernels_left()


# root LMs over HTTP


@pytest.mark.usefixtures("plain_repl")
@pytest.mark.parametrize("multiturn", [False, True])
def test_a_responses_lm_is_told_only_what_is_new_in_every_turn(multiturn: bool) -> None:
    answers = [
        turn("read", "print(run_data('r1')['score'])"),
        turn("set", f"print(update_prompt('topic', {toy.FIX!r})['changed'])"),
        turn("check", "print(evaluate_program('val')['score'])"),
        turn("done", SUBMIT),
    ]
    with ResponsesServer(answers) as server:
        lm = dspy.LM("openai/root", model_type="responses", api_base=server.url, api_key="none", cache=False)
        result = toy.optimizer(ScriptedRootLM([]), root_lm=lm, rlm_multiturn_history=multiturn).compile(
            toy.Triage(), trainset=toy.trainset(), metric=toy.metric, valset=toy.valset()
        )
        calls = server.calls
    assert result.optimized_dspy_program["topic"] == toy.FIX
    assert [call.parent for call in calls] == [None, *(call.id for call in calls[:-1])]
    assert "You improve a DSPy program" in str(calls[0].new)
    assert not any("You improve a DSPy program" in str(call.new) for call in calls[1:])
    assert "50.0" in str(calls[1].new)
    assert "100.0" in str(calls[3].new)
    assert toy.SECRET not in str([call.body for call in calls])


@pytest.mark.usefixtures("plain_repl")
def test_with_multi_turn_history_a_chat_lm_gets_its_turns_as_a_conversation() -> None:
    _, root = toy.compiled(["print('first' + 'ly')", "print('second' + 'ly')", SUBMIT], rlm_multiturn_history=True)
    last = root.requests[-1]
    assert [message.role for message in last.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert "firstly" in (last.messages[2].text or "")
    assert "secondly" in (last.messages[4].text or "")


# programs and metrics of other kinds


@pytest.mark.usefixtures("plain_repl")
def test_an_async_program_with_an_async_metric_in_gepas_form_is_improved_too() -> None:
    class AsyncTriage(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.topic = dspy.Predict("message -> topic")
            self.reply = dspy.Predict("message, topic -> answer")

        async def aforward(self, message: str) -> dspy.Prediction:
            topic = (await self.topic.acall(message=message)).topic
            return dspy.Prediction(topic=topic, answer=(await self.reply.acall(message=message, topic=topic)).answer)

    async def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        return {"score": float(pred.answer == gold.answer), "feedback": f"was {pred.topic}"}

    result, _ = toy.compiled(
        [
            "print([e['feedback'] for e in run_data('r1')['examples']][:2])",
            f"print(evaluate_program(prompts={{'topic': {toy.FIX!r}}})['score'])",
            SUBMIT,
        ],
        student=AsyncTriage(),
        metric=metric,
    )
    assert outputs(result)[:2] == ["['was billing', 'was I believe that it is bug']", "100.0"]


@pytest.mark.usefixtures("plain_repl")
def test_step_names_are_right_in_nested_modules_loops_and_shared_signatures() -> None:
    shared = dspy.Signature("message -> topic", "Say what it is about.")

    class Inner(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict(shared)

        def forward(self, message: str) -> str:
            return self.ask(message=message).topic

    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [Inner(), Inner()]
            self.named = {"last": dspy.ChainOfThought(shared)}

        def forward(self, message: str) -> dspy.Prediction:
            for part in (*self.parts, self.parts[0]):
                topic = part(message=message)
            return dspy.Prediction(topic=topic, answer=self.named["last"](message=message).topic)

    lm = field_lm(lambda question: dict.fromkeys(question.outputs, question.instructions))
    code = """
names = [s["step"] for s in program_steps]
for n, name in enumerate(names):
    update_prompt(name, f"prompt {n}")
(e,) = evaluate_program(limit=1)["examples"]
called = [s["step_name"] for s in e["steps"]]
print(sorted(set(called)) == sorted(names), len(called))
print(all(s["outputs"]["topic"].endswith(str(names.index(s["step_name"]))) for s in e["steps"]))
"""
    result, _ = toy.compiled([code, SUBMIT], student=Outer(), eval_lm=lm)
    assert outputs(result)[0].splitlines() == ["True 4", "True"]
    assert [predictor.signature.instructions for _, predictor in result.named_predictors()] == [
        "prompt 0",
        "prompt 1",
        "prompt 2",
    ]


@pytest.mark.usefixtures("plain_repl")
def test_what_libraries_log_and_warn_of_in_a_compile_is_printable_and_bounded(
    capfd: pytest.CaptureFixture[str],
) -> None:
    evil = "\x1b]0;OWNED\x07"
    logger = logging.getLogger("a_library")
    logger.propagate = False
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    before = logging.Handler.handle

    class Numbers(toy.Triage):
        def __init__(self) -> None:
            super().__init__()
            self.count = dspy.Predict("number: int -> topic")

        def forward(self, message: str) -> dspy.Prediction:
            logger.error("%s %s", evil, "x" * 10**6)
            dspy.Predict("number: int -> topic")(number=evil)  # DSPy itself logs what it was given
            return super().forward(message)

    try:
        toy.compiled([SUBMIT], student=Numbers(), eval_lm=field_lm(lambda asked: {"topic": "a", "answer": "b"}))
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    told = capfd.readouterr().err
    assert "OWNED" in told
    assert "characters left out" in told
    assert "\x1b" not in told
    assert "\x07" not in told
    assert len(told) < 200_000
    assert logging.Handler.handle is before
