"""A directory as the proposer of the quality benchmark: requests and answers are files."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench_toy
import dspy
import pytest
from dspy import lm15
from quality.answer_files import AnswerDirectory, FilesEngine
from quality.models import ModelNames, opened_models


@pytest.fixture
def person(tmp_path: Path) -> Any:
    """Starts a person who answers in `tmp_path / "answers"`; ends them at the end of the test."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(answer: Callable[[str], str]) -> Path:
        threads.append(bench_toy.answering(tmp_path / "answers", answer, stop))
        return tmp_path / "answers"

    yield start
    stop.set()
    for thread in threads:
        thread.join(10)


def document(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def test_a_request_is_a_file_and_so_is_its_answer(tmp_path: Path, person: Any) -> None:
    directory = person(lambda request: "42" if "six by seven" in request else "no")
    engine = FilesEngine(AnswerDirectory(directory / "run", timeout=60))
    lm = dspy.LM("files/proposer", engine=engine, cache=False, num_retries=0, max_tokens=100)
    assert lm("six by seven") == ["42"]
    assert lm("something else") == ["no"]
    assert sorted(path.name for path in (directory / "run").iterdir()) == [
        f"000{number}.{kind}" for number in (1, 2) for kind in ("answer.md", "request.json", "request.md")
    ]
    request = (directory / "run" / "0001.request.md").read_text("utf-8")
    assert "`0001.answer.md.part`" in request
    assert "---------------- user ----------------\n\nsix by seven" in request
    assert "At most 100 tokens." in request
    stored = json.loads((directory / "run" / "0001.request.json").read_text("utf-8"))
    assert stored["messages"] == [{"role": "user", "content": "six by seven"}]
    assert lm.history[0]["usage"]["prompt_tokens"] == 3  # an estimate


def test_requests_of_many_threads_get_their_own_answers(person: Any) -> None:
    directory = person(lambda request: request.rpartition("number ")[2].strip())
    answers = AnswerDirectory(directory, timeout=60)
    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(lambda number: answers.ask(document(f"number {number}")), range(20)))
    assert said == [str(number) for number in range(20)]
    assert not (directory / "waiting.txt").exists()


def test_a_process_that_starts_again_finds_its_answers(tmp_path: Path) -> None:
    stop = threading.Event()
    numbers = iter(range(100))
    thread = bench_toy.answering(tmp_path, lambda _: f"answer {next(numbers)}", stop)
    first = AnswerDirectory(tmp_path, timeout=60)
    said = [first.ask(document(text)) for text in ("a", "b", "a")]
    stop.set()
    thread.join(10)
    again = AnswerDirectory(tmp_path, timeout=0.3)
    assert [again.ask(document(text)) for text in ("b", "a", "a")] == [said[1], said[0], said[2]]
    with pytest.raises(lm15.TimeoutError, match=r"no answer within 0.3 s; it is waited for as .*0004\.answer\.md"):
        again.ask(document("a"))


def test_an_answer_that_came_after_the_time_is_there_for_the_next_process(tmp_path: Path) -> None:
    with pytest.raises(lm15.TimeoutError):
        AnswerDirectory(tmp_path, timeout=0).ask(document("a"))
    assert not (tmp_path / "waiting.txt").exists()
    (tmp_path / "0001.answer.md").write_text("late", encoding="utf-8")
    assert AnswerDirectory(tmp_path, timeout=0).ask(document("a")) == "late"


def test_half_an_answer_and_an_empty_one_are_not_read(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    answers = AnswerDirectory(tmp_path, timeout=60)
    with ThreadPoolExecutor(1) as threads:
        said = threads.submit(answers.ask, document("a"))
        waiting = tmp_path / "waiting.txt"
        wait_until(lambda: waiting.exists(), "waiting.txt")
        assert waiting.read_text("utf-8") == "0001\n"
        part = tmp_path / "0001.answer.md.part"
        (tmp_path / "0001.answer.md").touch()
        part.write_text("the whole answer", encoding="utf-8")
        assert not said.done()
        part.replace(tmp_path / "0001.answer.md")
        assert said.result(60) == "the whole answer"


@pytest.mark.parametrize("arm", ["guess", "gepa", "ours"])
def test_a_person_can_be_the_proposer_of_an_arm(arm: str, tmp_path: Path, person: Any) -> None:
    directory = person(bench_toy.proposal)
    result = bench_toy.made(arm, tmp_path / "out", models=bench_toy.AskedInFiles(directory, seconds=60))
    assert sum(result.test_scores) == bench_toy.ROWS
    assert (result.proposer, result.answered_by) == ("stand-in", "nobody")
    proposed = {role: used for role, used in result.usage.items() if role not in ("eval", "test")}
    asked = sum(used["calls"] for used in proposed.values())
    assert asked == len(list((directory / f"toy-{arm}-0").glob("*.answer.md"))) >= 1
    assert any(used["prompt_tokens"] > 0 for used in proposed.values())


@pytest.mark.parametrize("arm", ["guess", "gepa"])
def test_an_arm_that_begins_again_asks_a_person_nothing_twice(arm: str, tmp_path: Path, person: Any) -> None:
    directory = person(bench_toy.proposal)
    result = bench_toy.made(arm, tmp_path / "out", models=bench_toy.AskedInFiles(directory, seconds=60))
    for answered in (tmp_path / "out").rglob("result.json"):
        answered.unlink()
    alone = tmp_path / "nobody is there"
    directory.rename(alone)
    again = bench_toy.made(arm, tmp_path / "out", models=bench_toy.AskedInFiles(alone, seconds=0))
    assert again.prompts == result.prompts
    assert (again.metric_calls, again.feedback_calls) == (result.metric_calls, result.feedback_calls)
    assert again.usage.keys() == result.usage.keys()


def test_the_program_cannot_be_run_by_a_directory(tmp_path: Path) -> None:
    named = ModelNames(eval=f"files:{tmp_path}", root="openai/x")
    with pytest.raises(ValueError, match="--eval cannot be a directory"), opened_models(named, threads=1):
        pass


def test_a_model_file_that_is_not_there_is_said_by_its_name() -> None:
    names = ModelNames(eval="gguf:nowhere.gguf", root="files:answers")
    with pytest.raises(ValueError, match=r"^gguf:nowhere\.gguf: there is no such file"):
        opened_models(names, threads=1).__enter__()
