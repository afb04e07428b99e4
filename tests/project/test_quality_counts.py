"""What the quality benchmark counts: metric calls and LM calls, also of a process that is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench_toy
import dspy
import pytest
import toy
from dspy import lm15
from quality.counter import MetricCounter, five_arguments, score_of
from quality.metered_lm import CallLog, MeteredLM

pytestmark = pytest.mark.usefixtures("plain_repl")


def test_the_counter_counts_every_thread_and_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metric_calls"
    with MetricCounter(path, anew=True) as counter, ThreadPoolExecutor(8) as threads:
        metric = counter.around(bench_toy.five_argument_metric)
        gold, right = toy.example(0), dspy.Prediction(answer="we refund you")
        answers = list(threads.map(lambda _: metric(gold, right).score, range(500)))
        metric(gold, right, None, "topic", [])
        metric(gold, right, pred_name="topic")
    assert answers == [1.0] * 500
    with MetricCounter(path, anew=False) as counter:
        counter.around(lambda gold, prediction: 1)(None, None)
        assert (counter.metric_calls, counter.feedback_calls) == (501, 2)
    with MetricCounter(path, anew=True) as counter:
        assert (counter.metric_calls, counter.feedback_calls) == (0, 0)


def test_a_metric_call_that_raises_is_counted(tmp_path: Path) -> None:
    def broken(gold: Any, prediction: Any) -> float:
        raise RuntimeError("broken")

    with MetricCounter(tmp_path / "calls", anew=True) as counter:
        with pytest.raises(RuntimeError, match="broken"):
            counter.around(broken)(None, None)
        assert counter.metric_calls == 1


def test_gepa_can_call_a_metric_that_takes_two_arguments(tmp_path: Path) -> None:
    with MetricCounter(tmp_path / "calls", anew=True) as counter:
        metric = five_arguments(counter.around(lambda gold, prediction: 0.5))
        assert metric(None, None, None, "topic", []) == 0.5
        assert counter.metric_calls == 1


@pytest.mark.parametrize(
    ("answer", "score"), [(True, 1.0), (0.5, 0.5), ({"score": 1}, 1.0), (dspy.Prediction(score=0.0), 0.0)]
)
def test_a_score_is_a_number_or_has_one(answer: Any, score: float) -> None:
    assert score_of(answer) == score


def test_an_answer_from_the_cache_is_a_cached_call_without_tokens(tmp_path: Path) -> None:
    def answer(request: lm15.Request) -> lm15.Response:
        usage = lm15.Usage(input_tokens=7, output_tokens=3, total_tokens=10)
        said = lm15.Message.assistant("yes")
        return lm15.Response(id=None, model="m", message=said, finish_reason="stop", usage=usage)

    class Counting:
        complete = staticmethod(answer)

    with CallLog(tmp_path / "calls.jsonl", anew=True) as log:
        lm = MeteredLM("offline/cached", role="eval", log=log, engine=Counting(), cache=True, num_retries=0)
        assert lm("is it?") == lm.copy()("is it?") == ["yes"]
        used = log.usage()["eval"]
    assert (used.calls, used.cached, used.failed) == (2, 1, 0)
    assert (used.prompt_tokens, used.completion_tokens) == (7, 3)
