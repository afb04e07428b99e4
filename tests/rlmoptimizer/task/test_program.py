"""Programs: the names of steps, their prompts, and a fingerprint that sees every other change."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import enum
import functools
import inspect
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest
from child_process import fresh, output_of
from hypothesis import given
from hypothesis import strategies as st
from offline import field_lm

from rlmoptimizer.errors import InvalidSetup, PromptUpdateError
from rlmoptimizer.task.program import (
    apply_prompts,
    check_program,
    clone,
    fingerprint,
    read_prompts,
    separate_stages,
    step_names,
    step_of,
)


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Address(pydantic.BaseModel):
    street: str
    number: int


class Triage(dspy.Signature):
    """Sort the ticket."""

    ticket: str = dspy.InputField(desc="what the customer wrote")
    where: Address = dspy.InputField()
    queue: Literal["billing", "bugs"] = dspy.OutputField(desc="who should answer")
    mood: Mood = dspy.OutputField()

    @classmethod
    def shout(cls) -> str:
        return cls.instructions.upper()


def search(query: str) -> str:
    """Look something up."""
    return query


class Inner(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")
        self.sort = dspy.Predict(Triage)


class Program(dspy.Module):
    """One of everything that a step can be found in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.inner = Inner()
        self.many = [dspy.Predict("a -> b"), dspy.ChainOfThought("a -> b"), Inner()]
        self.named = {"x": dspy.Predict(Triage), "y z": dspy.ChainOfThought(Triage)}
        self.pair = (dspy.Predict("a -> b"), dspy.Predict("a -> b"))
        self.again = self.first
        self.inner_again = self.inner
        self.agent = dspy.ReAct("question -> answer", tools=[search])
        self.frozen = dspy.ChainOfThought("a -> b")
        self.frozen._compiled = True
        self.settings = {"limit": 3, "words": ["a"]}
        self.lock = threading.Lock()


ALL_STEPS = (
    "first",
    "inner.think.predict",
    "inner.sort",
    "many[0]",
    "many[1].predict",
    "many[2].think.predict",
    "many[2].sort",
    "named['x']",
    "named['y z'].predict",
    "pair[0]",
    "pair[1]",
    "agent.react",
    "agent.extract.predict",
)


# Names.


@pytest.mark.smoke
def test_steps_are_named_as_dspy_names_them() -> None:
    program = Program()
    assert step_names(program) == ALL_STEPS
    assert list(read_prompts(program)) == list(ALL_STEPS)
    assert read_prompts(program)["named['x']"] == "Sort the ticket."


@pytest.mark.parametrize(
    ("program", "names"),
    [
        (dspy.Predict("a -> b"), ("self",)),
        (dspy.ChainOfThought("a -> b"), ("predict",)),
        (dspy.ReAct("a -> b", tools=[search]), ("react", "extract.predict")),
    ],
)
def test_a_predictor_alone_is_a_program(program: dspy.Module, names: tuple[str, ...]) -> None:
    check_program(program)
    assert step_names(program) == names


def test_a_trace_names_every_predictor_by_its_step_under_whichever_name_it_was_called() -> None:
    program = Program()
    name_of = step_of(program)
    assert name_of(program.again) == "first"
    assert name_of(program.inner_again.think.predict) == "inner.think.predict"
    for name, predictor in program.named_predictors():
        assert name_of(predictor) == name


def test_two_steps_with_one_signature_class_are_told_apart() -> None:
    program = Program()
    program.pair[1].signature = program.pair[0].signature
    name_of = step_of(program)
    assert [name_of(predictor) for predictor in program.pair] == ["pair[0]", "pair[1]"]


def test_copies_that_are_made_while_the_program_runs_keep_the_name() -> None:
    program = Program()
    name_of = step_of(program)
    assert name_of(program.inner.deepcopy().think.predict) == "inner.think.predict"
    assert name_of(copy.deepcopy(program.named["x"])) == "named['x']"


def test_copies_of_steps_that_are_copies_of_each_other_keep_their_names_too() -> None:
    class Twins(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = dspy.Predict("a -> b")
            self.right = copy.deepcopy(self.left)

    program = clone(Twins())
    separate_stages(program)
    name_of = step_of(program)
    assert name_of(program.left.deepcopy()) == "left"
    assert name_of(program.right.deepcopy()) == "right"


def test_a_predictor_that_is_no_step_is_shown_by_its_path_or_its_fields() -> None:
    program = Program()
    name_of = step_of(program)
    assert name_of(program.frozen.predict) == "frozen.predict"
    assert name_of(dspy.Predict("made, anew -> x")) == "<Predict(made, anew -> x)>"


# What can be worked with.


class Nothing(dspy.Module):
    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=question)


def _holding(**attributes: Any) -> dspy.Module:
    module = Nothing()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def _frozen() -> dspy.Module:
    inner = dspy.ChainOfThought("a -> b")
    inner._compiled = True
    return _holding(inner=inner)


def _looping() -> dspy.Module:
    module = _holding(inner=Nothing())
    module.inner.outer = module
    return module


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (Program, "not the class Program; pass an instance"),
        ("a -> b", "student must be a dspy.Module, not str"),
        (None, "not NoneType"),
        (Nothing(), "no dspy.Predict in it"),
        (_frozen(), "compiled, and so frozen"),
        (_looping(), "contains itself"),
        (_holding(d={1: dspy.Predict("a -> b"), "1": dspy.Predict("a -> b")}), r"the same name \(d\['1'\]\)"),
    ],
    ids=["class", "text", "none", "no-steps", "frozen", "loop", "same-name"],
)
def test_a_program_that_cannot_be_optimized_is_refused_with_the_reason(program: Any, message: str) -> None:
    with pytest.raises(InvalidSetup, match=message):
        check_program(program)


def test_a_program_that_was_compiled_before_has_steps_all_the_same() -> None:
    program = Program()
    program._compiled = True
    assert step_names(program) == ALL_STEPS


# Prompts.


def test_a_prompt_is_replaced_whole_and_nothing_else_changes() -> None:
    program = Program()
    others = {name: text for name, text in read_prompts(program).items() if name != "inner.sort"}
    before = fingerprint(program)
    apply_prompts(program, {"inner.sort": "Be brief."})
    assert read_prompts(program) == others | {"inner.sort": "Be brief."}
    assert fingerprint(program) == before


def test_a_signature_stays_what_it_was_but_for_its_instructions() -> None:
    program = Program()
    for text in ("one", "two", "three"):
        apply_prompts(program, {"inner.sort": text})
    signature = program.inner.sort.signature
    assert signature.__name__ == "Triage"
    assert signature.shout() == "THREE"
    assert issubclass(signature, Triage)
    assert signature.__mro__[1] is Triage  # not a chain of all earlier ones
    assert list(signature.fields) == list(Triage.fields)
    assert {name: field.annotation for name, field in signature.fields.items()} == {
        name: field.annotation for name, field in Triage.fields.items()
    }
    assert Triage.instructions == "Sort the ticket."


def test_steps_that_share_a_signature_class_get_prompts_of_their_own() -> None:
    program = Program()
    apply_prompts(program, {"named['x']": "only here"})
    assert read_prompts(program)["inner.sort"] == "Sort the ticket."


def test_a_prompt_for_a_predictor_with_two_names_is_seen_under_both() -> None:
    program = Program()
    apply_prompts(program, {"first": "both"})
    assert program.again.signature.instructions == "both"


def test_a_field_name_that_shadows_a_model_method_is_no_obstacle() -> None:
    with pytest.warns(UserWarning, match="shadows"):
        signature = dspy.Signature("json -> copy")
    program = dspy.Predict(signature)
    apply_prompts(program, {"self": "new"})
    assert read_prompts(program) == {"self": "new"}


@pytest.mark.parametrize(
    ("step", "text", "reason"),
    [
        ("nowhere", "x", "there is no such step; the steps are first, inner.think.predict"),
        ("again", "x", "there is no such step"),
        ("frozen.predict", "x", "there is no such step"),
        ("first", "", "it is empty"),
        ("first", " \n\t", "it is empty"),
        ("first", None, "it is of type NoneType"),
        ("first", 3, "it is of type int"),
        ("first", ["x"], "it is of type list"),
        ("first", "a \ud800 b", "lone surrogates"),
    ],
)
def test_a_prompt_that_cannot_be_set_is_refused(step: str, text: Any, reason: str) -> None:
    program = Program()
    before = read_prompts(program)
    with pytest.raises(PromptUpdateError, match=reason) as refused:
        apply_prompts(program, {step: text})
    assert refused.value.step == step
    assert read_prompts(program) == before


def test_several_prompts_are_set_together_or_not_at_all() -> None:
    program = Program()
    before = read_prompts(program)
    with pytest.raises(PromptUpdateError, match="'nowhere'"):
        apply_prompts(program, {"first": "new", "inner.sort": "new", "nowhere": "new"})
    assert read_prompts(program) == before
    apply_prompts(program, {"first": "new", "inner.sort": "newer"})
    assert read_prompts(program) == before | {"first": "new", "inner.sort": "newer"}


class Meddling(dspy.Predict):
    """A predictor that changes something else when its signature is set."""

    armed = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "signature" and self.armed:
            super().__setattr__("config", {"temperature": 1.0})
        super().__setattr__(name, value)


def test_an_update_that_changes_more_than_instructions_is_undone() -> None:
    program = Meddling("a -> b")
    program.armed = True
    with pytest.raises(PromptUpdateError, match="more than the instructions"):
        apply_prompts(program, {"self": "new"})
    assert "new" not in read_prompts(program)["self"]


@given(st.text())
def test_a_prompt_reads_back_as_dspy_shows_it_and_can_be_set_again(text: str) -> None:
    program = dspy.Predict("a -> b")
    if not text.strip():
        with pytest.raises(PromptUpdateError):
            apply_prompts(program, {"self": text})
        return
    apply_prompts(program, {"self": text})
    kept = read_prompts(program)
    assert kept["self"].split() == text.split()
    again = dspy.Predict("a -> b")
    apply_prompts(again, kept)
    assert read_prompts(again) == kept
    assert inspect.cleandoc(kept["self"]) == kept["self"]


def test_what_is_set_survives_dspys_own_save_and_load(tmp_path: Path) -> None:
    program, loaded = Program(), Program()
    del program.lock, loaded.lock  # DSPy's own copy, which `load` begins with, loses aliases beside a lock
    prompts = {name: f"prompt of {name}" for name in ALL_STEPS}
    apply_prompts(program, prompts)
    program.save(tmp_path / "program.json")
    loaded.load(tmp_path / "program.json")
    assert read_prompts(loaded) == prompts
    assert fingerprint(loaded) == fingerprint(program)
    apply_prompts(loaded, {"inner.sort": "after loading"})
    assert fingerprint(loaded) == fingerprint(program)


@pytest.mark.filterwarnings("ignore:Loading untrusted")
def test_a_whole_program_saves_and_loads_too(tmp_path: Path) -> None:
    program = Inner()
    apply_prompts(program, {"sort": "Be brief."})
    program.save(tmp_path / "program", save_program=True)
    loaded = dspy.load(tmp_path / "program", allow_pickle=True)
    assert read_prompts(loaded) == read_prompts(program)
    assert fingerprint(loaded) == fingerprint(program)


# Clones.


def test_a_clone_shares_nothing_that_can_change() -> None:
    program = Program()
    program.first.demos = [dspy.Example(question="q", answer="a")]
    twin = clone(program)
    apply_prompts(twin, {"first": "new"})
    twin.first.demos[0].answer = "changed"
    twin.settings["words"].append("b")
    twin.inner.think.predict.config["n"] = 2
    assert read_prompts(program)["first"] != "new"
    assert program.first.demos[0].answer == "a"
    assert program.settings == {"limit": 3, "words": ["a"]}
    assert program.inner.think.predict.config == {}


def test_a_clone_keeps_aliases_and_shares_what_cannot_be_copied() -> None:
    program = Program()
    twin = clone(program)
    assert twin.again is twin.first
    assert twin.inner_again is twin.inner
    assert twin.first is not program.first
    assert twin.lock is program.lock
    assert step_names(twin) == ALL_STEPS
    assert fingerprint(twin) == fingerprint(program)


def test_predictors_beside_something_that_cannot_be_copied_are_copied_all_the_same() -> None:
    program = _holding(mixed=[threading.Lock(), dspy.Predict("a -> b")], by_name={"gate": threading.Event()})
    twin = clone(program)
    assert twin.mixed[1] is not program.mixed[1]
    assert twin.mixed[0] is program.mixed[0]
    assert twin.by_name["gate"] is program.by_name["gate"]


def test_a_clone_shares_its_lms_and_keeps_its_callbacks() -> None:
    class Watcher(dspy.utils.BaseCallback):
        pass

    lm, watcher = field_lm(lambda asked: {}), Watcher()
    program = Program()
    program.first.lm = lm
    program.callbacks.append(watcher)
    program.inner.callbacks.append(watcher)
    twin = clone(program)
    assert twin.first.lm is lm
    assert twin.callbacks == [watcher]
    assert twin.inner.callbacks == [watcher]
    assert twin.inner.callbacks is not program.inner.callbacks


def test_a_long_history_is_neither_copied_nor_searched() -> None:
    program = Program()
    program.history = [{"messages": [_Untouchable()]}]
    program.first.traces = [_Untouchable()]
    twin = clone(program)
    assert twin.history == []
    assert fingerprint(twin) == fingerprint(program)


class _Untouchable(dict[str, Any]):
    def items(self) -> Any:
        raise AssertionError("looked into")

    values = items

    def __deepcopy__(self, memo: Any) -> Any:
        return self


# The fingerprint.


def _first(program: Program) -> Any:
    return program.first


def _with_field(program: Program, **change: Any) -> None:
    program.first.signature = program.first.signature.with_updated_fields("answer", **change)


CHANGES: dict[str, Callable[[Program], Any]] = {
    "a description": lambda p: _with_field(p, desc="new"),
    "a prefix": lambda p: _with_field(p, prefix="A:"),
    "an annotation": lambda p: _with_field(p, type_=int),
    "a new field": lambda p: setattr(p.first, "signature", p.first.signature.append("more", dspy.OutputField())),
    "a field less": lambda p: setattr(p.inner.sort, "signature", p.inner.sort.signature.delete("mood")),
    "the order of fields": lambda p: setattr(
        p.inner.sort,
        "signature",
        p.inner.sort.signature.delete("queue").append("queue", Triage.fields["queue"], Literal["billing", "bugs"]),
    ),
    "a demo": lambda p: p.first.demos.append(dspy.Example(question="q", answer="a")),
    "a config": lambda p: p.first.config.update(temperature=0.5),
    "an LM": lambda p: setattr(p.first, "lm", dspy.LM("openai/x")),
    "a step more": lambda p: setattr(p, "late", dspy.Predict("a -> b")),
    "a step less": lambda p: p.many.pop(),
    "another class": lambda p: setattr(p, "inner", dspy.ChainOfThought("question -> answer")),
    "a frozen module's prompt": lambda p: setattr(
        p.frozen.predict, "signature", p.frozen.predict.signature.with_instructions("new")
    ),
    "a module frozen": lambda p: setattr(p.inner, "_compiled", True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_fingerprint_sees(what: str) -> None:
    program = Program()
    before = fingerprint(program)
    CHANGES[what](program)
    assert fingerprint(program) != before


def test_the_fingerprint_does_not_see_instructions_however_they_were_set() -> None:
    program = Program()
    before = fingerprint(program)
    for name, predictor in program.named_predictors():
        predictor.signature = predictor.signature.with_instructions(f"prompt of {name}")
    assert fingerprint(program) == before


def test_the_fingerprint_sees_lm_settings_but_no_secrets() -> None:
    def printed(**settings: Any) -> str:
        program = Program()
        program.first.lm = dspy.LM("openai/x", **settings)
        return fingerprint(program)

    assert printed(temperature=0.1) != printed(temperature=0.2)
    assert printed(max_tokens=10) != printed(max_tokens=20)
    assert printed(api_key="one") == printed(api_key="two") == printed()
    assert printed(api_base="http://127.0.0.1:8001") == printed(base_url="http://127.0.0.1:8002") == printed(timeout=3)


def test_the_fingerprint_sees_what_an_annotation_is_made_of() -> None:
    def printed(*colors: str) -> str:
        Color = enum.Enum("Color", {color: color for color in colors}, module=__name__)
        fields = {"a": (str, dspy.InputField()), "b": (Color, dspy.OutputField())}
        return fingerprint(dspy.Predict(dspy.Signature(fields)))

    assert printed("red") == printed("red")
    assert printed("red") != printed("red", "green")


def test_the_fingerprint_bears_values_of_any_kind() -> None:
    program = Program()
    endless: list[Any] = [object(), {1, "x"}, functools.partial(search), Address(street="s", number=1), 10**5000]
    endless += ["\ud800", endless]
    program.first.demos = [dspy.Example(question=endless, dspy_split="train"), {"question": b"\xff"}]
    assert fingerprint(program) == fingerprint(clone(program))


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    code = "import test_program; print(test_program.fingerprint(test_program.Program()))"
    there = output_of(fresh(code, variables={"PYTHONHASHSEED": "1"}, options=("-W", "ignore")))
    assert there.strip() == fingerprint(Program())


@dataclasses.dataclass
class Span:
    start: int
    words: tuple[str, ...]


DEMOS: dict[str, list[Any]] = {
    "an example": [dspy.Example(question="q", answer="a", augmented=True).with_inputs("question")],
    "a prediction": [dspy.Prediction(question="q", dspy_uuid="7")],
    "a dict": [{"question": "q"}],
    "a model": [dspy.Example(question=Address(street="s", number=1), answer=dspy.History(messages=[{"q": "a"}]))],
    "an image": [{"question": dspy.Image("https://example.org/a.png")}],
    "nested": [dspy.Example(question=dspy.Example(deep=[dspy.Example(x=1)]), answer=("a", 1, [("b",)]))],
    "times": [dspy.Example(question=datetime.date(2020, 1, 2), answer=datetime.datetime(2020, 1, 2, 3, 4, 5, 6))],
    "an enum": [dspy.Example(question=Mood.GOOD, answer=uuid.UUID(int=5))],
    "a dataclass": [dspy.Example(question=Span(1, ("a",)), answer=float("nan"))],
}


@pytest.mark.parametrize("ending", ["json", "pkl"])
@pytest.mark.parametrize("demos", DEMOS.values(), ids=DEMOS)
def test_what_dspy_saves_and_loads_has_the_same_fingerprint(demos: list[Any], ending: str, tmp_path: Path) -> None:
    program, loaded = (Uses(dspy.ChainOfThought(Triage)) for _ in range(2))
    program.first.demos = demos
    program.first.lm = dspy.LM("offline/some", api_base="http://localhost:1", stop=("x", "y"), temperature=0.5)
    program.save(tmp_path / f"state.{ending}")
    loaded.load(tmp_path / f"state.{ending}", allow_pickle=True)
    assert fingerprint(loaded) == fingerprint(program)
    program.save(tmp_path / "whole", save_program=True)
    assert fingerprint(dspy.load(str(tmp_path / "whole"), allow_pickle=True)) == fingerprint(program)
    loaded.first.demos = [*loaded.first.demos, {"question": "more"}]
    assert fingerprint(loaded) != fingerprint(program)


# Programs that cannot be called, or whose clones are not their own.


class Uncallable(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")


class Wrapper(Uncallable):
    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["first"], name)


class OnlyCalled(Uncallable):
    def __call__(self, **inputs: Any) -> Any:
        return self.first(**inputs)


class OnlyAsync(Uncallable):
    async def aforward(self, **inputs: Any) -> Any:
        return await self.first.acall(**inputs)


class Patched(Uncallable):
    def __init__(self) -> None:
        super().__init__()
        self.forward = self.first.__call__


def test_a_student_that_cannot_be_called_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidSetup, match="Uncallable has neither forward nor aforward"):
        check_program(Uncallable())
    for program in (Wrapper(), OnlyCalled(), OnlyAsync(), Patched(), dspy.ChainOfThought("question -> answer")):
        check_program(program)
    assert not caplog.records


class Itself(dspy.Predict):
    def __deepcopy__(self, memo: Any) -> Any:
        return self


class SharesItsPredictor(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.Predict("question -> answer")

    def __deepcopy__(self, memo: Any) -> Any:
        made = SharesItsPredictor()
        made.inner = self.inner
        return made

    def forward(self, question: str) -> Any:
        return self.inner(question=question)


class Singleton(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = dspy.Predict("question -> answer")

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def forward(self, question: str) -> Any:
        return self.inner(question=question)


class HoldsItsSignatureElsewhere(dspy.Predict):
    """Keeps its signature in an object that all copies share."""

    @property
    def signature(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.shared.signature

    @signature.setter
    def signature(self, value: Any) -> None:
        if "shared" not in vars(self):
            self.shared = Board()
        self.shared.signature = value


class Board:
    signature: Any = None

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Uses(dspy.Module):
    def __init__(self, part: Any) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.part = part

    def forward(self, question: str) -> Any:
        return self.first(question=question)


def _frozen_singleton() -> dspy.Module:
    module = Singleton()
    module._compiled = True
    return module


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (Itself("question -> answer"), "shares part with it"),
        ([SharesItsPredictor()], r"shares part\[0\].inner with it"),
        ({"a": Singleton()}, r"shares part\['a'\].inner with it"),
        (_frozen_singleton(), "shares part.inner with it"),
        (HoldsItsSignatureElsewhere("question -> answer"), "shares part with it"),
    ],
    ids=["itself", "its predictor", "singleton", "frozen", "its signature"],
)
def test_a_student_whose_copy_shares_a_predictor_with_it_is_refused_and_left_as_it_was(part: Any, named: str) -> None:
    student = Uses(part)
    before = read_prompts(student)
    with pytest.raises(InvalidSetup, match=named):
        check_program(student)
    assert read_prompts(student) == before


def test_a_student_whose_copies_are_its_own_is_taken_though_it_has_a_deepcopy_of_its_own() -> None:
    class Careful(Uses):
        def __deepcopy__(self, memo: Any) -> Any:
            made = type(self)(copy.deepcopy(self.part, memo))
            made.first = copy.deepcopy(self.first, memo)
            return made

    check_program(Careful(threading.Lock))


def test_a_prompt_of_nothing_but_lines_before_its_text_is_cleaned_in_one_look() -> None:
    program = dspy.Predict("a -> b")
    text = "\n".join(" " * (number % 7) + "\t" * (number % 2) for number in range(30_000)) + "\n    One.\n      Two.\n"
    apply_prompts(program, {"self": text})  # line by line it took minutes
    assert read_prompts(program) == {"self": "One.\nTwo."}
    apply_prompts(program, {"self": " \n\n  One.\n\n    Two.\n      Three.\n  \n"})
    assert read_prompts(program) == {"self": "One.\n\nTwo.\n  Three."}


def test_a_student_whose_forward_calls_a_module_that_no_copy_takes_along_is_refused() -> None:
    inner = dspy.Predict("question -> answer")
    few_shot = dspy.KNNFewShot(1, [dspy.Example(question="q", answer="a").with_inputs("question")], _Embedder())
    own = dspy.Predict("question -> answer")
    own.forward = lambda **inputs: inner(**inputs)
    for student in (few_shot.compile(inner), own):
        with pytest.raises(InvalidSetup, match="forward of self is a function of its own that calls a Predict"):
            check_program(student)


class _Embedder(dspy.Embedder):
    def __init__(self) -> None:
        super().__init__(lambda texts: [[1.0] for _ in texts])
