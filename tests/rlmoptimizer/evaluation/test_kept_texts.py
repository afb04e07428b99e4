"""Kept texts: an LM is sent byte for byte what DSPy's own adapter sends, whatever the adapter and the values."""

from __future__ import annotations

import copy
import enum
import json
import pickle
import random
from collections.abc import Callable
from typing import Any, Literal

import cloudpickle
import dspy
import pydantic
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError
from hypothesis import given, settings
from hypothesis import strategies as st
from offline import Engine, fields_text, text_lm

from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.kept_texts import with_kept_texts
from rlmoptimizer.task.dataset import build_dataset

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.filterwarnings("ignore:Passing OpenAI-style message:DeprecationWarning"),
]

ADAPTERS: dict[str, Callable[[], Any]] = {
    "chat": dspy.ChatAdapter,
    "chat, native": lambda: dspy.ChatAdapter(use_native_function_calling=True),
    "json": dspy.JSONAdapter,
    "xml": dspy.XMLAdapter,
    "baml": BAMLAdapter,
    "two steps": lambda: dspy.TwoStepAdapter(text_lm(lambda _: fields_text({"answer": "x"}))),
}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
TEXTS = [
    "", " ", "\n a \n", "a\n\n\nb", "<a> & </a> &amp; &lt;", '"q" \'q\' \\n \\', "[[ ## answer ## ]]\nx",
    "{x} {{y}} %s",
    "«»", "\u2028\x85\x0c", "\ud800", "\x00", "€😀", "<<CUSTOM-TYPE-START-IDENTIFIER>>[]<<CUSTOM-TYPE-END-IDENTIFIER>>",
]  # fmt: skip


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Point(pydantic.BaseModel):
    """A place."""

    x: int = pydantic.Field(description="to the right")
    tags: list[str] = []


class Typed(dspy.Signature):
    """Answer it.

    With care & <b>braces</b> {x}.
    """

    question: str = dspy.InputField(desc="what is asked")
    notes: list[str] = dspy.InputField()
    point: Point = dspy.InputField()
    count: int | None = dspy.InputField(default=None)
    mood: Mood = dspy.OutputField(desc="how it feels")
    kind: Literal["a", "b"] = dspy.OutputField()
    points: list[Point] = dspy.OutputField()
    answer: str = dspy.OutputField()


class WithHistory(dspy.Signature):
    """Go on."""

    history: dspy.History = dspy.InputField()
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


class WithImage(dspy.Signature):
    """Look."""

    image: dspy.Image = dspy.InputField()
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


class WithTools(dspy.Signature):
    """Call."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    calls: dspy.ToolCalls = dspy.OutputField()


def search(query: str) -> str:
    """Look it up."""
    return query


PLAIN: Any = dspy.Signature("question, context -> reasoning, answer")
TYPED_INPUTS = {"notes": ["a", "b\nc"], "point": Point(x=1, tags=["<t>"]), "count": 3}
TYPED_OUTPUTS = {"mood": Mood.GOOD, "kind": "a", "points": [Point(x=2)]}


def cases(text: str, other: str) -> list[tuple[Any, list[Any], dict[str, Any]]]:
    """Signature, demos and inputs, all with these two texts in them."""
    whole = {"question": other, "context": text, "reasoning": text, "answer": other}
    turns = [{"question": text, "answer": other}, {"question": other, "answer": text}]
    return [
        (PLAIN, [], {"question": text, "context": other}),
        (PLAIN, [], {"question": text}),
        (PLAIN, [whole, dspy.Example(**whole)], {"question": text, "context": other}),
        (PLAIN, [{"question": text, "answer": other}], {"question": other, "context": text, "more": text}),
        (PLAIN, [], {"question": [text, other], "context": {"k": text}}),
        (PLAIN, [], {"question": 1.5, "context": None}),
        (Typed, [], {"question": text, **TYPED_INPUTS}),
        (Typed, [{"question": text, **TYPED_INPUTS, **TYPED_OUTPUTS, "answer": other}], {"question": other}),
        (WithHistory, [], {"history": dspy.History(messages=turns), "question": text}),
        (WithImage, [], {"image": dspy.Image(url=PIXEL), "question": text}),
        (WithTools, [], {"question": text, "tools": [dspy.Tool(search)]}),
    ]


def messages(adapter: Any, case: tuple[Any, list[Any], dict[str, Any]]) -> Any:
    """What is sent, or what comes instead of it."""
    signature, demos, inputs = case
    try:
        return adapter.format(signature, demos, dict(inputs))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other one raises it too
        return type(error), str(error)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_messages_are_those_of_dspys_own_adapter(name: str) -> None:
    own = ADAPTERS[name]()
    kept = with_kept_texts(own)
    assert kept is not own
    assert type(kept) is type(own)
    rng = random.Random(7)
    for text in TEXTS:
        for case in cases(text, rng.choice(TEXTS)):
            for _ in range(2):
                assert messages(kept, case) == messages(own, case)


@settings(max_examples=30, deadline=None)
@given(st.text(), st.text())
def test_no_text_of_an_example_is_sent_otherwise(text: str, other: str) -> None:
    for own, kept in PAIRS:
        for case in cases(text, other)[:4]:
            assert messages(kept, case) == messages(own, case)


PAIRS = [(own := make(), with_kept_texts(own)) for make in ADAPTERS.values()]


def test_a_signature_that_changes_is_written_anew() -> None:
    own, changing = dspy.ChatAdapter(), dspy.Signature("question -> answer", "First.")
    kept = with_kept_texts(own)

    def same() -> str:
        case = (changing, [], {"question": "q"})
        sent = [messages(kept, case) for _ in range(3)]
        assert sent == [messages(own, case)] * 3
        return sent[0][0]["content"]

    assert "First." in same()
    changing.instructions = "Second."
    assert "Second." in same()
    changing.model_fields["answer"].json_schema_extra["desc"] = "in one word"
    assert "in one word" in same()
    changing.model_fields["answer"].annotation = int
    assert "(int)" in same()


def test_a_type_of_the_user_is_asked_for_its_description_each_time() -> None:
    asked: list[int] = []

    class Moving(dspy.Type):
        text: str

        def format(self) -> str:
            return self.text

        @classmethod
        def description(cls) -> str:
            asked.append(1)
            return f"description {len(asked)}"

    kept, signature = with_kept_texts(dspy.ChatAdapter()), dspy.Signature({"q": (str, dspy.InputField())})
    signature = signature.append("a", dspy.OutputField(), list[Moving])
    sent = [messages(kept, (signature, [], {"q": "x"}))[0]["content"] for _ in range(3)]
    assert len(set(sent)) == 3


def test_signatures_that_are_made_for_each_call_are_not_gathered() -> None:
    own = dspy.ChatAdapter()
    kept = with_kept_texts(own)
    for number in range(200):
        case = (dspy.Signature("question -> answer", f"Number {number}."), [], {"question": "q"})
        assert messages(kept, case) == messages(own, case)
    assert len(kept.format_system_message.__self__._known) <= 64


class Shouting(dspy.ChatAdapter):
    def format_task_description(self, signature: Any) -> str:
        return super().format_task_description(signature).upper()


class Counting(dspy.ChatAdapter):
    def __init__(self) -> None:
        super().__init__()
        self.parsed = 0

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        self.parsed += 1
        return super().parse(signature, completion)


@pytest.mark.parametrize("make", [Shouting, Counting])
def test_an_adapter_of_the_user_stands_for_itself(make: type[Any]) -> None:
    own = make()
    assert with_kept_texts(own) is own


def test_a_method_that_was_replaced_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dspy.ChatAdapter()
    own.format_task_description = lambda signature: "mine"
    assert with_kept_texts(own) is own

    monkeypatch.setattr(dspy.ChatAdapter, "format_field_structure", lambda self, signature: "patched")
    assert with_kept_texts(None).format_field_structure(PLAIN) == "patched"
    assert "format_system_message" not in vars(with_kept_texts(None))


ANSWERS = {"mood": "good", "kind": "b", "points": '[{"x": 1}]', "answer": "<x>"}


def parsed(adapter: Any, completion: str) -> Any:
    """What is read, or what comes instead of it."""
    try:
        return adapter.parse(Typed, completion)
    except AdapterParseError as error:
        return str(error), error.signature, error.lm_response, error.parsed_result, error.__cause__ is None


@pytest.mark.parametrize("name", ["chat", "json"])
def test_an_answer_is_read_as_by_dspys_own_adapter_and_an_error_has_the_signature_itself(name: str) -> None:
    own = ADAPTERS[name]()
    kept = with_kept_texts(own)
    answers = [ANSWERS, {**ANSWERS, "mood": "bad\n\nday"}, {"answer": "x"}, {**ANSWERS, "other": "x"}, {}]
    texts = [*map(fields_text, answers), *map(json.dumps, answers), "", "[1]", "nothing"]
    read = [parsed(own, text) for text in texts]
    assert [parsed(kept, text) for text in texts] == read
    assert any(type(one) is dict for one in read)
    assert any(type(one) is tuple for one in read)


@pytest.mark.parametrize("of_adapter", [False, True])
def test_a_callback_of_dspys_gets_the_signature_itself(of_adapter: bool) -> None:
    got: list[Any] = []

    class Hearing(BaseCallback):
        def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            got.append(inputs["signature"])

    kept = with_kept_texts(dspy.ChatAdapter(callbacks=[Hearing()] if of_adapter else []))
    with dspy.context(callbacks=[] if of_adapter else [Hearing()]):
        kept.parse(Typed, fields_text(ANSWERS))
    assert len(got) == 1
    assert got[0] is Typed


def test_a_copy_and_a_pickle_of_it_send_the_same() -> None:
    own = dspy.ChatAdapter()
    kept, case = with_kept_texts(own), cases("a", "b")[2]
    assert messages(kept, case) == messages(kept, case)
    for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept)), cloudpickle.loads(cloudpickle.dumps(kept))):
        assert messages(other, case) == messages(own, case)


class Program(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.typed = dspy.Predict(Typed)
        self.plain = dspy.ChainOfThought("question, context -> answer")
        self.plain.predict.demos = [dspy.Example(question="q", context="c", reasoning="r", answer="a")]

    def forward(self, question: str) -> dspy.Prediction:
        first = self.typed(question=question, **TYPED_INPUTS)
        return self.plain(question=question, context=first.answer)


@pytest.mark.parametrize("name", [*ADAPTERS, "none"])
def test_an_evaluation_sends_and_gets_what_the_program_does_by_itself(name: str) -> None:
    sent: list[tuple[Any, ...]] = []

    def answer(request: Any) -> str:
        sent.append((request.system, [message.text for message in request.messages], request.config))
        fields = {"mood": "good", "kind": "b", "points": "[]", "answer": "<x>", "reasoning": "r & s"}
        return fields_text(fields)

    adapter = None if name == "none" else ADAPTERS[name]()
    lm = dspy.LM("offline/eval", engine=Engine(answer), cache=False, num_retries=0)
    questions = [text for text in TEXTS if "\ud800" not in text]
    rows = build_dataset([dspy.Example(question=question).with_inputs("question") for question in questions]).train
    predicted: list[Any] = []
    with dspy.context(lm=lm, adapter=adapter):
        program = Program()
        for row in rows:
            try:
                predicted.append(dict(program(question=row.example.question).items()))
            except Exception:  # noqa: BLE001 - such as an answer that the adapter cannot read
                predicted.append({})
        alone, sent = sent, []
        with Evaluator(lambda example, prediction: 1.0, lm, 1) as evaluator:
            results = evaluator.score(program, rows)
    assert sent == alone
    assert [result.predicted or {} for result in results] == predicted


class Looking(dspy.Module):
    """Notes what it finds in DSPy's settings; its second step has an adapter of its own."""

    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict("question -> answer"), dspy.Predict("question -> answer")
        self._seen = seen

    def forward(self, question: str) -> dspy.Prediction:
        self._seen.append(dspy.settings.adapter)
        self.first(question=question)
        with dspy.context(adapter=dspy.XMLAdapter()):
            answer = self.second(question=question)
        self._seen.append(dspy.settings.adapter)
        return answer

    def __deepcopy__(self, memo: Any) -> Looking:
        return Looking(self._seen)


@pytest.mark.parametrize("adapter", [None, dspy.JSONAdapter()], ids=["none", "json"])
def test_a_program_sees_the_adapter_that_is_set_and_the_copy_is_there_in_its_steps_only(adapter: Any) -> None:
    seen: list[Any] = []
    asked: list[tuple[type[Any], bool]] = []

    def answer(request: Any) -> str:
        used = dspy.settings.adapter
        asked.append((type(used), "format_system_message" in vars(used)))
        return '{"answer": "x"}' if type(used) is dspy.JSONAdapter else "[[ ## answer ## ]]\nx\n<answer>x</answer>"

    lm = dspy.LM("offline/eval", engine=Engine(answer), cache=False, num_retries=0)
    rows = build_dataset([dspy.Example(question=text).with_inputs("question") for text in "abc"]).train
    with dspy.context(adapter=adapter), Evaluator(lambda example, prediction: 1.0, lm, 1) as evaluator:
        results = evaluator.score(Looking(seen), rows)
    assert [result.error for result in results] == [None] * 3
    assert len(seen) == 6
    assert all(one is adapter for one in seen)
    assert asked == [(dspy.ChatAdapter if adapter is None else dspy.JSONAdapter, True), (dspy.XMLAdapter, False)] * 3
