"""The sources that `share_source` gives to the agent."""

from __future__ import annotations

import functools
import importlib
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from dspy.evaluate import answer_exact_match
from offline import ScriptedRootLM

from rlmoptimizer.agent.source_text import metric_source, program_source

pytestmark = pytest.mark.usefixtures("plain_repl")


class Verdict(dspy.Signature):
    """Judge the claim."""

    claim: str = dspy.InputField()
    verdict: str = dspy.OutputField()


def _normalized(text: str) -> str:
    return text.strip().lower()


def _deeper(text: str) -> str:
    return _normalized(text)


def _unused(text: str) -> str:
    return text


def scores(gold: Any, prediction: Any) -> bool:
    return _deeper(gold.verdict) == _deeper(prediction.verdict)


class Scores:
    """Counts what it judges."""

    @staticmethod
    def judged(text: str) -> str:
        return _normalized(text)

    def __call__(self, gold: Any, prediction: Any) -> bool:
        return self.judged(gold.verdict) == self.judged(prediction.verdict)


class Inner(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.judge = dspy.ChainOfThought(Verdict)

    def forward(self, claim: str) -> Any:
        return self.judge(claim=_normalized(claim))


class Outer(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, claim: str) -> Any:
        return self.inner(claim=claim)


def test_the_source_of_a_program_is_its_classes_and_what_they_use() -> None:
    source = program_source(Outer())
    assert source.problem is None
    for part in ("class Outer", "class Inner", "class Verdict", "def _normalized"):
        assert source.text.count(part) == 1, part
    for other in ("class Predict", "class ChainOfThought", "def scores", "import"):
        assert other not in source.text


def test_of_dspys_own_program_the_signature_of_ones_own_is_shown() -> None:
    assert program_source(dspy.Predict(Verdict)).text.startswith("class Verdict(dspy.Signature):")


def find_claims(topic: str) -> str:
    """Claims about a topic."""
    return _normalized(topic)


class Archive:
    def find(self, topic: str) -> str:
        """Claims that were judged before."""
        return topic


@pytest.mark.parametrize(
    ("tool", "parts"),
    [
        (find_claims, ("def find_claims", "def _normalized")),
        (dspy.Tool(find_claims, name="other"), ("def find_claims", "def _normalized")),
        (Archive().find, ("def find(self",)),
    ],
)
def test_of_dspys_own_agent_the_tools_of_ones_own_are_shown(tool: Any, parts: tuple[str, ...]) -> None:
    source = program_source(dspy.ReAct("topic -> verdict", tools=[tool]))
    assert source.problem is None
    for part in parts:
        assert source.text.count(part) == 1, part
    assert "class ReAct" not in source.text
    assert "Completed" not in source.text  # of the tool that DSPy adds


def test_a_signature_in_a_file_of_its_own_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apart_signatures.py").write_text(
        "import dspy\n\n\nclass Apart(dspy.Signature):\n    a = dspy.InputField()\n    b = dspy.OutputField()\n"
    )
    (tmp_path / "apart_program.py").write_text(
        "import dspy\nfrom apart_signatures import Apart\n\n\nclass Program(dspy.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.step = dspy.ChainOfThought(Apart)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = program_source(importlib.import_module("apart_program").Program()).text
    for part in ("class Program(dspy.Module)", "class Apart(dspy.Signature)"):
        assert text.count(part) == 1, part


@pytest.mark.parametrize("program", [dspy.Predict("a -> b"), dspy.ReAct("a -> b", tools=[])])
def test_a_program_of_dspys_own_has_no_source_and_it_is_said(program: dspy.Module) -> None:
    source = program_source(program)
    assert source.text == ""
    assert "DSPy's own" in (source.problem or "")


@pytest.mark.parametrize("metric", [scores, functools.partial(scores), functools.partial(functools.partial(scores))])
def test_the_source_of_a_metric_is_its_function_and_what_it_uses(metric: Any) -> None:
    source = metric_source(metric)
    assert source.problem is None
    assert all(source.text.count(f"def {name}(") == 1 for name in ("scores", "_deeper", "_normalized"))
    assert "_unused" not in source.text


@pytest.mark.parametrize("metric", [Scores(), Scores().__call__])
def test_the_source_of_an_object_is_that_of_its_class_and_of_a_method_that_method(metric: Any) -> None:
    text = metric_source(metric).text
    assert "def __call__(self, gold" in text
    assert ("class Scores" in text) == isinstance(metric, Scores)


class Touchy:
    """Something in a class that wants to be left alone."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"who asks for {name}?")


class Methods:
    touchy = Touchy()

    @classmethod
    def of_the_class(cls) -> str:
        return _normalized("")

    @property
    def computed(self) -> str:
        return _deeper("")

    @functools.cached_property
    def kept(self) -> str:
        return _unused("")

    def __call__(self, gold: Any, prediction: Any) -> bool:
        return True


def test_methods_of_every_kind_are_read_and_other_attributes_left_alone() -> None:
    text = metric_source(Methods()).text
    assert all(f"def {name}(" in text for name in ("_normalized", "_deeper", "_unused"))


def test_a_metric_of_dspy_is_shown_too() -> None:
    assert metric_source(answer_exact_match).text.startswith("def answer_exact_match(")


def test_what_cannot_be_had_is_empty_and_says_why() -> None:
    namespace: dict[str, Any] = {}
    exec("metric = lambda gold, prediction: True", namespace)
    assert metric_source(namespace["metric"]).text == ""
    assert "not defined in a file" in (metric_source(namespace["metric"]).problem or "")
    assert "not written in Python" in (metric_source(operator.eq).problem or "")


def test_a_file_that_is_being_edited_meanwhile_stops_nothing(tmp_path: Path) -> None:
    source = "class Metric:\n    def __call__(self, gold, prediction):\n        return True\n"
    (tmp_path / "edited.py").write_text(source)
    code = (
        "import edited; open('edited.py', 'w').write('class Metric(:');"
        "from rlmoptimizer.agent.source_text import metric_source; print(metric_source(edited.Metric()))"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert "Source(text=''" in done.stdout, done.stderr


def test_no_path_of_the_host_is_told(tmp_path: Path) -> None:
    script = tmp_path / "gone.py"
    script.write_text("def metric(gold, prediction):\n    return True\n")
    code = (
        "import os, gone; os.remove('gone.py');"
        "from rlmoptimizer.agent.source_text import metric_source; print(metric_source(gone.metric))"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert "not defined in a file" in done.stdout, done.stderr
    assert str(tmp_path) not in done.stdout


def test_a_long_source_loses_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlmoptimizer.agent.source_text._SOURCE_CHARS", 100)
    text = program_source(Outer()).text
    assert len(text) < 200
    assert "characters left out" in text


def test_the_agent_has_the_sources_only_when_they_are_shared() -> None:
    show = "print('SOURCE', metric_source[:10], program_source[:12])"
    submit = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
    _, root = toy.compiled([show, submit], share_source=True)
    assert "SOURCE def metric class Triage" in root.history
    assert "program_source" in root.seen[0].text
    _, root = toy.compiled([show, submit])
    assert "NameError" in root.history
    assert "program_source" not in root.seen[0].text


def test_a_source_that_is_missing_is_told_to_the_agent_and_the_person(caplog: pytest.LogCaptureFixture) -> None:
    namespace: dict[str, Any] = {}
    exec("metric = lambda gold, prediction: True", namespace)
    turns = ["print('SOURCE', repr(metric_source), task_facts['warnings'])", "SUBMIT(optimized_dspy_program={})"]
    root = ScriptedRootLM([*turns, "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"])
    toy.optimizer(root, share_source=True).compile(toy.Triage(), **toy.arguments(metric=namespace["metric"]))
    assert "SOURCE '' ['metric_source is empty: the source of <lambda> cannot be read" in root.history
    assert "metric_source is empty" in caplog.text
