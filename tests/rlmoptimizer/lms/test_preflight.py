"""LMs without a key or without a price: told before anything runs, and none that could have been asked or priced."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from offline import ScriptedRootLM
from priced import priced_text

from rlmoptimizer import InvalidSetup
from rlmoptimizer.lms.preflight import why_keyless, why_unpriced

pytestmark = pytest.mark.usefixtures("plain_repl")

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.endswith(("_KEY", "_BASE", "_BASE_URL", "_TOKEN", "_ENDPOINT")):
            monkeypatch.delenv(name)


def keyless(**options: Any) -> dspy.LM:
    return dspy.LM("openai/gpt-5", **options)


class Watched(toy.Triage):
    ran = False

    def forward(self, message: str) -> dspy.Prediction:
        type(self).ran = True
        return super().forward(message)


@pytest.mark.parametrize("role", ["root_lm", "sub_lm", "eval_lm", "settings", "step"])
def test_an_lm_without_a_key_is_refused_before_anything_runs(role: str, tmp_path: Path) -> None:
    student = Watched()
    options: dict[str, Any] = {"run_storage_dir": tmp_path / "runs", "student": student}
    if role == "step":
        student.reply.lm = keyless()
    elif role == "settings":
        options["eval_lm"] = None
    elif role == "root_lm":
        root = ScriptedRootLM([])
        root.lm = keyless()
        with pytest.raises(InvalidSetup, match="the root LM openai/gpt-5 cannot be asked: it has no key"):
            toy.optimizer(root).compile(student, trainset=toy.trainset(), metric=toy.metric)
    else:
        options[role] = keyless()
    if role != "root_lm":
        settings = {"lm": keyless()} if role == "settings" else {}
        with dspy.context(**settings), pytest.raises(InvalidSetup, match="Set OPENAI_API_KEY in the environment"):
            toy.compiled([SUBMIT], **options)
    assert not Watched.ran
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("given", ["api_key", "environment", "predictor"])
def test_a_key_is_found_wherever_dspy_would_find_it(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student: Any = toy.Triage()
    if given == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", "none")
    elif given == "predictor":
        student.topic.config = student.reply.config = {"api_key": "none", "api_base": "http://127.0.0.1:9/v1"}
    lm = keyless(cache=False, num_retries=0, **({"api_key": "none"} if given == "api_key" else {}))
    lm = lm if given == "predictor" else lm.copy(api_base="http://127.0.0.1:9/v1")
    with pytest.raises(dspy.LMError, match="failed to connect"):
        toy.compiled([SUBMIT], student=student, eval_lm=lm)


class OwnWay(dspy.LM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    "lm",
    [
        keyless(api_key="sk"),
        keyless(api_key=lambda: "sk"),
        keyless(api_base="http://127.0.0.1:9/v1"),
        keyless(headers={"Authorization": "Bearer x"}),
        dspy.LM("ollama_chat/llama3"),
        dspy.LM("hosted_vllm/mine", api_base="http://127.0.0.1:9/v1"),
        dspy.LM("mistral/any"),
        dspy.LM("bedrock/any"),
        dspy.LM("github_copilot/any"),
        dspy.LM("nobody-knows/this"),
        OwnWay("openai/gpt-5"),
        toy.eval_lm(),
        dspy.utils.DummyLM([{"answer": "x"}]),
    ],
    ids=lambda lm: f"{type(lm).__name__}-{lm.model}",
)
def test_what_cannot_be_told_before_a_call_is_not_refused(lm: dspy.BaseLM) -> None:
    loaded = "litellm" in sys.modules
    assert why_keyless(lm) is None
    assert ("litellm" in sys.modules) == loaded  # its import asks the network


def test_an_empty_key_is_said_to_be_empty() -> None:
    assert (why_keyless(keyless(api_key=None)) or "").startswith("its api_key is empty")


def test_a_finished_optimization_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(eval_lm: dspy.LM) -> Any:
        return toy.compiled([SUBMIT], eval_lm=eval_lm, run_storage_dir=tmp_path, resume=True)[0]

    first = compiled(toy.eval_lm())
    again = dspy.LM("offline/eval")
    monkeypatch.setattr("rlmoptimizer.lms.preflight.why_keyless", lambda lm: "it has no key")
    assert compiled(again).latest_run_id == first.latest_run_id


# prices


def test_an_lm_whose_price_can_never_be_known_is_told_before_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    assert "engine of its own" in str(why_unpriced(toy.eval_lm()))
    assert "no known rate" in str(why_unpriced(dspy.LM("openai/no-such-model")))
    assert why_unpriced(dspy.LM("openai/gpt-4o-mini")) is None
    assert why_unpriced(dspy.LM("openai/gpt-4o-mini", model_type="responses")) is None
    assert why_unpriced(priced_text(str)) is None  # it states one itself
    assert why_unpriced(dspy.utils.DummyLM([])) is None  # only its calls can tell
    assert why_unpriced(dspy.LM("openai/gpt-4o-mini", engine="litellm")) is None  # LiteLLM has prices of its own
