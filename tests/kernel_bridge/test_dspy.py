"""DSPy's code-executing modules on our kernels, with language models that are written down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest
from dspy.primitives.code_interpreter import CodeInterpreterError
from dspy_modules import module_or_skip
from offline import Asked, ScriptedRootLM, field_lm, text_lm

from kernel_bridge import KernelInterpreter, Limits

# The facade that DSPy gives to sub-agents calls LMs the way that DSPy itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Passing OpenAI-style message:DeprecationWarning")


class Made:
    """A factory that remembers what it made."""

    execution_instructions = KernelInterpreter.execution_instructions

    def __init__(self, **options: Any) -> None:
        self.options = {"confinement": "off", **options}
        self.interpreters: list[KernelInterpreter] = []

    def __call__(self) -> KernelInterpreter:
        self.interpreters.append(KernelInterpreter(**self.options))
        return self.interpreters[-1]

    def all_shut_down(self) -> bool:
        for interpreter in self.interpreters:
            with pytest.raises(CodeInterpreterError, match="shut down"):
                interpreter.execute("1")
        return True


@pytest.fixture
def made() -> Made:
    return Made()


def run_rlm(signature: str, turns: list[Any], factory: Any, *, inputs: dict[str, Any], **options: Any) -> Any:
    """Run an RLM whose turns are written down. Returns its prediction and its LM."""
    root = ScriptedRootLM(turns)
    rlm = dspy.RLM(signature, interpreter_factory=factory, **options)
    with dspy.context(lm=root.lm):
        return rlm(**inputs), root


# -- RLM -------------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_an_rlm_works_turn_by_turn_and_sees_what_it_did(made: Made) -> None:
    result, root = run_rlm(
        "numbers: list[int], factor: int -> total: int, why: str",
        [
            "print(sum(numbers), factor)",
            "total = sum(numbers) * factor\nundefined_name",
            "SUBMIT(total, why='sum of ' + str(len(numbers)))",
        ],
        made,
        inputs={"numbers": [1, 2, 3], "factor": 7},
    )
    assert (result.total, result.why) == (42, "sum of 3")
    assert KernelInterpreter.execution_instructions in root.seen[0].instructions
    assert result.trajectory[0]["output"] == "6 7"
    assert "NameError: name 'undefined_name' is not defined" in root.history
    assert "undefined_name\n" in result.trajectory[1]["output"]
    assert len(made.interpreters) == 1
    assert made.all_shut_down()


def test_an_rlm_runs_inside_an_event_loop_too(made: Made) -> None:
    async def lookup(key: str) -> str:
        await asyncio.sleep(0)
        return {"apple": "red"}[key]

    root = ScriptedRootLM(["colour = lookup('apple')\nprint(colour)", "SUBMIT(colour)"])
    rlm = dspy.RLM("fruit -> colour", tools=[lookup], interpreter_factory=made)

    async def main() -> Any:
        with dspy.context(lm=root.lm):
            return await rlm.acall(fruit="apple")

    assert asyncio.run(main()).colour == "red"
    assert made.all_shut_down()


def test_every_type_of_output_is_what_the_signature_says(made: Made) -> None:
    result, _ = run_rlm(
        "q -> n: int, x: float, ok: bool, rows: list[int], table: dict[str, int], kind: Literal['a', 'b'], t: str",
        ["SUBMIT(n='7', x=1, ok='true', rows=(1, 2), table={'k': 1}, kind='b', t=5)"],
        made,
        inputs={"q": "?"},
    )
    assert (result.n, result.x, result.ok) == (7, 1.0, True)
    assert (result.rows, result.table) == ([1, 2], {"k": 1})
    assert (result.kind, result.t) == ("b", "5")


def test_a_submission_of_the_wrong_type_is_told_and_mended(made: Made) -> None:
    result, root = run_rlm(
        "q -> answer: Literal['yes', 'no'], n: int",
        ["SUBMIT('maybe', 1)", "SUBMIT('yes')", "SUBMIT('yes', 'many')", "SUBMIT('yes', 2)"],
        made,
        inputs={"q": "?"},
    )
    assert (result.answer, result.n) == ("yes", 2)
    outputs = [step["output"] for step in result.trajectory]
    assert "[Type Error] answer" in outputs[0]
    assert "missing a required argument: 'n'" in outputs[1]
    assert "n must be int, got str 'many'" in outputs[2]
    assert len(root.seen) == 4


def test_llm_queries_go_to_the_sub_lm_and_are_counted(made: Made) -> None:
    sub = text_lm(lambda prompt: f"<{prompt}>")
    result, _ = run_rlm(
        "q -> answer",
        [
            "one = llm_query('a')\nmany = llm_query_batched(['b', 'c'])\nprint(one, many)",
            "llm_query('d')",
            "SUBMIT(one + ''.join(many))",
        ],
        made,
        inputs={"q": "?"},
        sub_lm=sub,
        max_llm_calls=3,
    )
    assert result.answer == "<a><b><c>"
    assert "RuntimeError: LLM call limit exceeded: 3 + 1 > 3" in result.trajectory[1]["output"]


def test_an_rlm_that_never_submits_is_asked_for_its_answer(made: Made) -> None:
    root = ScriptedRootLM(["x = 1\nprint(x)"], extract={"answer": "extracted"})
    rlm = dspy.RLM("q -> answer", max_iters=2, interpreter_factory=made)
    with dspy.context(lm=root.lm):
        result = rlm(q="?")
    assert result.answer == "extracted"
    assert root.extracts == 1
    assert made.all_shut_down()


def test_an_rlm_that_fails_leaves_no_kernel(made: Made) -> None:
    root = ScriptedRootLM(["print(1)", RuntimeError("the LM is gone")])
    rlm = dspy.RLM("q -> answer", interpreter_factory=made)
    with dspy.context(lm=root.lm), pytest.raises(Exception, match="the LM is gone"):
        rlm(q="?")
    assert made.all_shut_down()


def test_an_rlm_goes_on_after_its_kernel_died(made: Made) -> None:
    result, _ = run_rlm(
        "text, rows: list[dict] -> answer",
        [
            "notes = ['kept']\nrows[0]['seen'] = True",
            "notes.append('lost')\nimport os; os._exit(9)",
            "import dspy\nprint(notes, text, rows)\nprint(dspy.Predict('q -> a')(q='still?').a)",
            "SUBMIT(' '.join(notes))",
        ],
        made,
        inputs={"text": "input", "rows": [{"id": 1}]},
        sub_lm=field_lm(lambda asked: {"a": f"yes, {asked.inputs['q']}"}),
    )
    assert result.answer == "kept"
    died, after = result.trajectory[1]["output"], result.trajectory[2]["output"]
    assert "it exited with status 9" in died
    assert "Restored from before this cell: " in died
    assert "['kept'] input [{'id': 1, 'seen': True}]" in after
    assert "yes, still?" in after


def test_an_rlm_whose_kernel_always_dies_ends_with_an_error(made: Made) -> None:
    with pytest.raises(CodeInterpreterError, match="the third time in a row: it exited with status 9"):
        run_rlm("q -> answer", ["import os; os._exit(9)"] * 5, made, inputs={"q": "?"})


def test_an_rlm_is_told_of_a_cell_that_ran_too_long(patient: None) -> None:
    made = Made(limits=Limits(cell_seconds=1.5))  # enough for all the rest, on a slow machine too
    result, _ = run_rlm("q -> answer", ["kept = 1\nwhile True: pass", "SUBMIT(str(kept))"], made, inputs={"q": "?"})
    assert result.answer == "1"
    assert "KeyboardInterrupt" in result.trajectory[0]["output"]
    assert "ran longer than 1.5 s of its own time" in result.trajectory[0]["output"]


# -- sub-agents ------------------------------------------------------------------------------------------------------


def test_sub_agents_run_on_the_host_with_the_sub_lm(made: Made) -> None:
    def respond(asked: Asked) -> dict[str, Any]:
        return {name: f"{name} of {asked.inputs['question']}" for name in asked.outputs}

    result, _ = run_rlm(
        "q -> answer",
        [
            "import dspy\nsimple = dspy.Predict('question -> reply')\nprint(simple(question='one').reply)",
            "thought = dspy.ChainOfThought('question -> reply')(question='two')\nprint(thought.reasoning)",
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(3) as pool:\n"
            "    replies = list(pool.map(lambda n: simple(question=str(n)).reply, range(3)))\n"
            "SUBMIT(', '.join(replies))",
        ],
        made,
        inputs={"q": "?"},
        sub_lm=field_lm(respond),
    )
    assert [step["output"] for step in result.trajectory][:2] == ["reply of one", "reasoning of two"]
    assert result.answer == "reply of 0, reply of 1, reply of 2"


def test_a_nested_rlm_has_a_kernel_of_its_own(made: Made) -> None:
    def shout(text: str) -> str:
        return text.upper()

    result, root = run_rlm(
        "q -> answer",
        [
            "mine = 17\nsub = dspy.RLM('text -> out', tools=[shout])\nres = sub(text=q)\nprint(res.out, mine)",
            "mine = 29\nprint('mine' in globals(), 'q' in globals(), text)",  # the sub-agent's turns come in between
            "SUBMIT(out=shout(text) + str(mine))",
            "SUBMIT(res.out)",
        ],
        made,
        inputs={"q": "hello"},
        tools=[shout],
    )
    assert result.answer == "HELLO29"
    assert result.trajectory[0]["output"] == "HELLO29 17"
    assert len(result.trajectory) == 2
    assert "True False hello" in root.seen[2].text
    assert len(made.interpreters) == 2
    assert made.all_shut_down()


def test_the_agent_cannot_choose_where_a_sub_agent_runs(made: Made) -> None:
    result, _ = run_rlm(
        "q -> answer",
        [
            "try:\n    dspy.RLM('a -> b', interpreter_factory=None)(a='x')\nexcept Exception as e:\n    print(e)",
            "try:\n    dspy.Predict('a -> b')(a='x', config={'api_key': 'k'})\nexcept Exception as e:\n    print(e)",
            "SUBMIT('done')",
        ],
        made,
        inputs={"q": "?"},
        sub_lm=field_lm(lambda asked: {"b": "x"}),
    )
    assert "nothing else is accepted here" in result.trajectory[0]["output"]
    assert "exactly the inputs of its signature" in result.trajectory[1]["output"]


# -- inputs ----------------------------------------------------------------------------------------------------------


class Records(dspy.SandboxSerializable):
    def __init__(self, rows: list[dict[str, int]]) -> None:
        self.rows = rows
        self.sent = 0

    def sandbox_setup(self) -> str:
        return (
            "import json\n"
            "class Records:\n"
            "    def __init__(self, rows): self.rows = rows\n"
            "    def total(self): return sum(row['value'] for row in self.rows)"
        )

    def to_sandbox(self) -> bytes:
        self.sent += 1
        return json.dumps(self.rows).encode()

    def sandbox_assignment(self, var_name: str, data_expr: str) -> str:
        return f"{var_name} = Records(json.loads({data_expr}))"

    def rlm_preview(self, max_chars: int = 500) -> str:
        return "rows with a total()"


class Blob(dspy.SandboxSerializable):
    def sandbox_setup(self) -> str:
        return ""

    def to_sandbox(self) -> bytes:
        return b"\xff\xfe\x00"

    def sandbox_assignment(self, var_name: str, data_expr: str) -> str:
        return f"{var_name} = {data_expr}"

    def rlm_preview(self, max_chars: int = 500) -> str:
        return "three bytes"


def test_an_input_that_knows_how_to_cross_is_rebuilt_once(made: Made) -> None:
    records = Records([{"value": 2}, {"value": 11}])
    result, root = run_rlm(
        "data, blob, plain -> answer: int",
        ["data.rows.append({'value': 7})\nprint(data.total(), list(blob), plain)", "SUBMIT(data.total())"],
        made,
        inputs={"data": records, "blob": Blob(), "plain": "text"},
    )
    assert result.answer == 20
    assert result.trajectory[0]["output"] == "20 [255, 254, 0] text"
    assert records.sent == 1
    assert "rows with a total()" in root.seen[0].text


def test_such_an_input_is_there_again_after_a_death(made: Made) -> None:
    result, _ = run_rlm(
        "data -> answer: int",
        [
            "data.rows.append({'value': 7})",
            "import os; os.kill(os.getpid(), 9)",
            "SUBMIT(data.total())",
        ],
        made,
        inputs={"data": Records([{"value": 2}])},
    )
    assert result.answer == 9


def test_an_input_of_ten_megabytes_is_no_burden(made: Made) -> None:
    text = "needle in a haystack of hay " * 400_000
    result, _ = run_rlm(
        "text -> answer: int",
        ["first = id(text)\nprint(len(text))", "SUBMIT(text.count('needle') if id(text) == first else -1)"],
        made,
        inputs={"text": text},
    )
    assert result.answer == 400_000
    assert result.trajectory[0]["output"] == str(len(text))


# -- the other modules -----------------------------------------------------------------------------------------------


@pytest.fixture
def thinking_lm() -> Callable[[dict[str, Any]], Any]:
    """An LM that answers each asked field from a dict of fields; a list is answered item by item."""

    def make(fields: dict[str, Any]) -> Any:
        queues: dict[str, Iterator[Any]] = {name: iter(v) for name, v in fields.items() if isinstance(v, list)}

        def respond(asked: Asked) -> dict[str, Any]:
            return {
                name: next(queues[name]) if name in queues else fields.get(name, "because") for name in asked.outputs
            }

        return field_lm(respond)

    return make


def test_program_of_thought_runs_on_it(made: Made, thinking_lm: Callable[..., Any]) -> None:
    program_of_thought = module_or_skip("ProgramOfThought")
    with pytest.warns(DeprecationWarning, match="ProgramOfThought is deprecated"):
        program = program_of_thought("question -> answer: int", interpreter_factory=made)
    codes = ["```python\n1 / 0\n```", "```python\nresult = 6 * 7\nSUBMIT({'answer': result})\n```"]
    with dspy.context(lm=thinking_lm({"generated_code": codes, "answer": 42})):
        result = program(question="six times seven?")
    assert result.answer == 42
    assert len(made.interpreters) == 1
    assert made.all_shut_down()


def double(x: int) -> int:
    """Twice x."""
    return 2 * x


def test_code_act_runs_on_it(made: Made, thinking_lm: Callable[..., Any]) -> None:
    code_act = module_or_skip("CodeAct")
    with pytest.warns(DeprecationWarning, match="CodeAct is deprecated"):
        program = code_act("n: int -> answer: int", tools=[double], max_iters=3, interpreter_factory=made)
    fields = {"generated_code": ["x = double(20)\nprint(x)", "no_such", "print(x + 2)"], "answer": 42}
    with dspy.context(lm=thinking_lm({**fields, "finished": ["False", "False", "True"]})):
        result = program(n=20)
    assert result.answer == 42
    assert result.trajectory["code_output_0"] == '"40"'
    assert "NameError" in result.trajectory["observation_1"]
    assert result.trajectory["code_output_2"] == '"42"'
    assert made.all_shut_down()


def test_the_configured_factory_serves_modules_that_name_none(made: Made) -> None:
    root = ScriptedRootLM(["SUBMIT('on our kernel')"])
    with dspy.context(interpreter_factory=made, lm=root.lm):
        rlm = dspy.RLM("q -> answer")
        assert rlm(q="?").answer == "on our kernel"
        assert KernelInterpreter.execution_instructions in root.seen[0].instructions
    assert len(made.interpreters) == 1
    assert made.all_shut_down()


def test_configure_takes_the_class_and_the_factory() -> None:
    root = ScriptedRootLM(["SUBMIT(1)", "SUBMIT(2)"])
    before = dspy.settings.interpreter_factory
    try:
        for factory, answer in ((KernelInterpreter, 1), (KernelInterpreter.factory(confinement="off"), 2)):
            dspy.configure(interpreter_factory=factory)
            with dspy.context(lm=root.lm):
                assert dspy.RLM("q -> answer: int")(q="?").answer == answer
    finally:
        dspy.configure(interpreter_factory=before)


FLEX = """
class Shouter(dspy.Module):
    def __init__(self):
        super().__init__()
        self.say = dspy.Predict(dspy.Signature("text -> said", "Say it."))
        self.count = 0

    def forward(self, **inputs):
        print("anything printed stays apart from the result")
        said = [self.say(text=part).said for part in inputs["text"].split()]
        return dspy.Prediction(loud=" ".join(shout(text=s) for s in said), words=len(said))
""".strip()


def test_flex_runs_on_it_with_tools_and_predictors(made: Made) -> None:
    def shout(text: str) -> str:
        return text.upper()

    flex = dspy.Flex("text: str -> loud: str, words: int", tools=[shout], interpreter_factory=made)
    flex._bind_code(FLEX)
    with dspy.context(lm=field_lm(lambda asked: {"said": f"<{asked.inputs['text']}>"})):
        result = flex(text="a b c")
    assert (result.loud, result.words) == ("<A> <B> <C>", 3)
    assert made.all_shut_down()


def test_a_flex_result_of_megabytes_comes_whole(made: Made) -> None:
    flex = dspy.Flex("n: int -> text: str", interpreter_factory=made)
    flex._bind_code(
        "class Long(dspy.Module):\n    def forward(self, **inputs):\n"
        "        return dspy.Prediction(text='é' * inputs['n'])"
    )
    assert flex(n=3_000_000).text == "é" * 3_000_000


def test_flex_tells_what_went_wrong_in_its_code(made: Made) -> None:
    flex = dspy.Flex("n: int -> m: int", interpreter_factory=made)
    flex._bind_code("class Bad(dspy.Module):\n    def forward(self, **inputs):\n        return 1 / inputs['n']")
    with pytest.raises(CodeInterpreterError, match="ZeroDivisionError: division by zero"):
        flex(n=0)
    assert made.all_shut_down()


def test_many_rlms_run_at_once_each_on_its_own_kernel(made: Made) -> None:
    rlm = dspy.RLM("n: int -> m: int", interpreter_factory=made)
    lm = field_lm(lambda asked: {"reasoning": "r", "code": "```python\nSUBMIT(n * n)\n```"})
    parallel = dspy.Parallel(num_threads=4, disable_progress_bar=True)
    with dspy.context(lm=lm):
        results = parallel([(rlm, dspy.Example(n=n).with_inputs("n")) for n in range(6)])
    assert [result.m for result in results] == [n * n for n in range(6)]
    assert len(made.interpreters) == 6
    assert made.all_shut_down()
