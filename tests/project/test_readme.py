"""The pages for users are true: every block is run, and stated names, defaults and output are compared."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import dspy
import pexpect
import pytest
from dspy import lm15
from offline import asked, fields_text
from provider import providers
from readme_blocks import Block, blocks, command
from terminal import console_environment

import example
from kernel_bridge import GUARANTEES, KernelInterpreter
from rlmoptimizer import Event, RLMDocstringOptimizer

ROOT = Path(__file__).resolve().parents[2]
# The pages for users, in the order in which their Python blocks run.
PAGES = {
    page: (ROOT / page).read_text(encoding="utf-8")
    for page in (
        "README.md",
        "docs/configuration.md",
        "docs/check.md",
        "docs/agent.md",
        "docs/spending.md",
        "docs/results.md",
        "docs/command-line.md",
        "docs/notebook.md",
        "docs/kernel-bridge.md",
        "docs/confinement.md",
        "docs/coming-from-gepa.md",
        "docs/events.md",
    )
}
README = PAGES["README.md"]
BLOCKS = {page: blocks(text) for page, text in PAGES.items()}

# Each kind of block, and the test below that runs or compares it.
CHECKED_BY = {
    ("sh", "install-and-run"): "test_the_two_set_up_commands_are_what_the_checks_run",
    ("sh", "install-and-test"): "test_the_two_set_up_commands_are_what_the_checks_run",
    ("text", "output-of-the-example"): "test_the_example_ends_as_shown",
    ("sh", "example-with-models"): "test_the_example_runs_with_models_of_a_provider",
    ("sh", "look"): "test_the_command_shows_the_kept_example",
    ("python", None): "test_the_python_blocks_run_in_order",
    ("python", "dask"): "test_the_block_for_dask_runs_with_a_cluster",
    ("python", "mlflow"): "test_the_block_for_mlflow_is_run_with_mlflow",
    ("python", "agent"): "test_the_agents_turns_run_in_its_kernel",
    ("python", "prints"): "test_the_python_blocks_run_in_order",
    ("text", "printed"): "test_a_block_prints_what_is_shown",
    ("sh", "command"): "test_a_command_writes_what_is_shown",
    ("text", "written"): "test_a_command_writes_what_is_shown",
    ("sh", "console"): "test_the_console_commands_find_a_live_kernel",
    ("sh", "probe"): "test_the_probe_command_shows_every_guarantee",
    ("text", "output-of-the-probe"): "test_the_probe_command_shows_every_guarantee",
}


def of_kind(language: str, marker: str | None) -> list[Block]:
    every = [block for of_page in BLOCKS.values() for block in of_page]
    found = [block for block in every if (block.language, block.marker) == (language, marker)]
    assert found, f"no page has a {language} block marked {marker}"
    return found


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "SECURITY.md", "CHANGELOG.md"])
def test_every_link_within_the_project_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "](" in text
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            led_to = (ROOT / page).parent / name if name else ROOT / page
            assert led_to.exists(), target
            assert not anchor or anchor in anchors(led_to.read_text(encoding="utf-8")), target


def test_the_readme_links_every_page_of_the_docs() -> None:
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages == {target for target in re.findall(r"\]\((docs/[^)#]+\.md)", README)}


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    found = [(page, block) for page, of_page in BLOCKS.items() for block in of_page]
    unknown = [f"{page}, line {block.line}: {block.language} {block.marker}" for page, block in found
               if (block.language, block.marker) not in CHECKED_BY]  # fmt: skip
    assert unknown == []
    assert {(block.language, block.marker) for _, block in found} == set(CHECKED_BY)
    assert all(name in globals() for name in CHECKED_BY.values())
    for page, text in PAGES.items():
        assert len(BLOCKS[page]) == text.count("\n```") // 2
        assert "~~~" not in text


def test_the_two_set_up_commands_are_what_the_checks_run(project_root: Path) -> None:
    script = (project_root / ".ci" / "run").read_text(encoding="utf-8")
    for marker in ("install-and-run", "install-and-test"):
        assert f"readme_command {marker}" in script
        # One line, one command, nothing but the standard library of Python to begin with.
        assert command(README, marker).count("\n") == 1
        assert command(README, marker).startswith("python3 -m venv .venv && .venv/bin/pip install ")


@dataclass
class ReadmeAgent:
    """The root LM of the README: its turns are the blocks that are marked as the agent's."""

    turns: list[Block]

    def complete(self, request: lm15.Request) -> lm15.Response:
        turn = int(asked(request).inputs["iteration"].partition("/")[0])
        return example.reply(fields_text({"reasoning": f"turn {turn}", "code": self.turns[turn - 1].text}))


class Assistant:
    """The small model of the README: answers a question, or calls a tool when it is the agent of a `dspy.RLM`."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        if "code" in asked(request).outputs:
            return example.reply(fields_text({"reasoning": "ask", "code": "SUBMIT(answer=str(in_stock('bolt')))"}))
        return example.reply("Questions begin with a question word.")


@dataclass(frozen=True)
class Session:
    """The Python blocks of all pages, run in order in one namespace."""

    directory: Path  # that they ran in
    names: dict[str, Any]
    printed: dict[tuple[str, int], str]  # page and line of a block -> what it wrote to stdout


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    models = {
        "openai/gpt-5": ReadmeAgent(of_kind("python", "agent")),
        "openai/gpt-5-mini": Assistant(),
        "openai/gpt-4o-mini": example.LiteralModel(),
    }
    names: dict[str, Any] = {"__name__": "readme"}
    printed: dict[tuple[str, int], str] = {}
    with providers(models) as lm_class, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dspy, "LM", lm_class)
        directory = tmp_path_factory.mktemp("readme")
        patch.chdir(directory)
        for page, block in [(page, block) for page, of_page in BLOCKS.items() for block in of_page]:
            if block.language == "python" and block.marker not in ("agent", "dask", "mlflow"):
                code = compile("\n" * block.line + block.text, page, "exec", dont_inherit=True)
                output = io.StringIO()
                with contextlib.redirect_stdout(output):
                    exec(code, names)
                printed[page, block.line] = output.getvalue()
    return Session(directory, names, printed)


@pytest.mark.smoke
def test_the_python_blocks_run_in_order(session: Session) -> None:
    assert len(session.printed) == len(of_kind("python", None)) + len(of_kind("python", "prints"))
    optimized = session.names["optimized"]
    assert optimized.signature.instructions != session.names["SortReview"].instructions
    scores = [run["score"] for run in optimized.trial_logs if run["split"] == "val"]
    assert scores[-1] > scores[0]


def test_the_agents_turns_run_in_its_kernel(session: Session) -> None:
    turns = of_kind("python", "agent")
    trajectory = session.names["optimized"].agent_trajectory
    assert [turn["code"] for turn in trajectory] == [block.text.strip() for block in turns]
    assert [turn["output"] for turn in trajectory if "Error" in turn["output"]] == []


def test_a_block_prints_what_is_shown(session: Session) -> None:
    shown = [block.text for block in of_kind("text", "printed")]
    printing = [(page, block.line) for page, of_page in BLOCKS.items() for block in of_page if block.marker == "prints"]
    assert [session.printed[place] for place in printing] == shown


def test_a_command_writes_what_is_shown(session: Session) -> None:
    shown = [block.text for block in of_kind("text", "written")]
    environment = {**on_path(), "COLUMNS": "100"}
    for block, text in zip(of_kind("sh", "command"), shown, strict=True):
        done = subprocess.run(
            ["bash", "-c", block.text],
            cwd=session.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr, done.stdout) == (0, "", text)


def test_prompts_of_the_command_line_are_set_on_a_program(session: Session) -> None:
    assert session.names["prompts"] == session.names["optimized"].optimized_dspy_program
    loaded = dspy.Predict(session.names["SortReview"])
    loaded.load(session.directory / "sort_review_best.json")
    assert loaded.signature.instructions == session.names["prompts"]["self"]


def test_a_resumed_compile_and_the_best_program_so_far_are_those_of_the_run_before(session: Session) -> None:
    resumable, best = session.names["resumable"], session.names["best"]
    assert resumable.optimized_dspy_program == session.names["optimized"].optimized_dspy_program
    assert best.signature.instructions == resumable.signature.instructions
    assert (best.best_run_id, best.best_score) == (resumable.best_run_id, resumable.best_score)


def test_the_metric_with_feedback_gives_feedback(session: Session) -> None:
    row = session.names["trainset"][0]
    verdict = session.names["metric_with_feedback"](row, dspy.Prediction(kind="question"))
    assert (verdict.score, verdict.feedback) == (0.0, "this is a praise")


def test_what_gepas_user_gets_here_is_better_too(session: Session) -> None:
    improved = session.names["improved"]
    assert improved.signature.instructions != session.names["SortReview"].instructions


def test_the_metric_with_step_feedback_speaks_of_the_step(session: Session) -> None:
    row = session.names["trainset"][0]
    calls = [(None, {"review": "12345"}, dspy.Prediction(kind="question"))]
    metric, prediction = session.names["metric_with_step_feedback"], dspy.Prediction(kind="question")
    assert metric(row, prediction).feedback == "this is a praise"
    assert metric(row, prediction, calls, "self", calls).feedback == "this is a praise; the review has 5 characters"


@dataclass(frozen=True)
class Kept:
    """A run of the example that kept its directory."""

    place: Path
    output: str  # on stdout
    looks: list[str]  # the commands with which the README looks at it


def run_example(arguments: list[str]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        example.main(arguments)
    return output.getvalue()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """The example, run as the README runs it to look at it afterwards."""
    (block,) = of_kind("sh", "look")
    command, *looks = block.text.splitlines()
    python, script, *arguments = shlex.split(command)
    assert (python, script, arguments) == ("python", "example.py", ["--quiet", "--keep", "runs"])
    place = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("COLUMNS", "80")
        return Kept(place, run_example(arguments), looks)


def test_the_example_ends_as_shown(kept: Kept) -> None:
    (shown,) = of_kind("text", "output-of-the-example")
    assert kept.output.endswith(shown.text)


def test_the_command_shows_the_kept_example(kept: Kept) -> None:
    said = [
        subprocess.run(["bash", "-c", look], cwd=kept.place, env=on_path(), capture_output=True, text=True, timeout=60)
        for look in kept.looks
    ]
    assert [(one.returncode, one.stderr) for one in said] == [(0, "")] * 4
    for part, one in zip(("r6   val", "run r4 on train", "queue is identity", "report.html"), said, strict=True):
        assert part in one.stdout
    assert "<!doctype html>" in (kept.place / "report.html").read_text(encoding="utf-8")[:100].lower()


def test_the_example_runs_with_models_of_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = of_kind("sh", "example-with-models")
    python, script, *arguments = shlex.split(block.text)
    assert (python, script) == (".venv/bin/python", "example.py")
    names = [name for name in arguments if "/" in name]
    models = dict(zip(names, [example.ScriptedAgent(), example.LiteralModel(), example.LiteralModel()], strict=True))
    with providers(models) as lm_class:
        monkeypatch.setattr(dspy, "LM", lm_class)
        output = run_example(arguments)
    assert "-> queue identity, priority urgent" in output


def test_the_console_commands_find_a_live_kernel(tmp_path: Path) -> None:
    (block,) = of_kind("sh", "console")
    listing, attaching = block.text.splitlines()
    with KernelInterpreter() as kernel:
        kernel.execute("secret = 'from the agent'")
        listed = subprocess.run(["bash", "-c", listing], env=on_path(), capture_output=True, text=True, timeout=60)
        assert listed.returncode == 0, listed.stderr
        assert str(kernel.connection_file) in listed.stdout
        environment: Any = {**console_environment(tmp_path), "PATH": on_path()["PATH"]}
        console = pexpect.spawn("bash", ["-c", attaching], env=environment, encoding="utf-8", timeout=60)
        try:
            console.expect_exact("In [")
            console.send("print(secret.upper())\r")
            console.expect_exact("FROM THE AGENT")
            console.expect_exact("In [")
            console.sendeof()
            console.expect_exact("Do you really want to exit")
            console.send("y\r")
            console.expect(pexpect.EOF)
        finally:
            console.close(force=True)
        assert kernel.execute("secret") == "from the agent"


def test_the_probe_command_shows_every_guarantee() -> None:
    (block,) = of_kind("sh", "probe")
    (output,) = of_kind("text", "output-of-the-probe")
    shown = subprocess.run(["bash", "-c", block.text], env=on_path(), capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    here, there = answers_in(shown.stdout), answers_in(output.text)
    assert list(here) == list(there) == list(GUARANTEES)
    # The page shows one machine; where this one gives the same tier, it must give the same guarantees.
    if shown.stdout.startswith(output.text.splitlines()[0]):
        assert here == there


def answers_in(table: str) -> dict[str, str]:
    """Guarantee -> "yes" or "no", in the order of the table."""
    return dict(line.split()[:2] for line in table.partition("\n\n")[2].splitlines())


def on_path() -> dict[str, str]:
    """The environment of an activated virtual environment: its commands come first."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def table_after(marker: str, page: str = "docs/configuration.md") -> list[list[str]]:
    lines = PAGES[page].partition(f"<!-- {marker} -->\n")[2].splitlines()
    rows: list[list[str]] = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[2:]


def test_the_block_for_mlflow_is_run_with_mlflow(project_root: Path) -> None:
    """By a test that needs MLflow, in a step of the checks that installs it."""
    (block,) = of_kind("python", "mlflow")
    assert "mlflow.dspy.autolog(" in block.text
    assert "tests/with_mlflow" in (project_root / ".ci" / "run").read_text(encoding="utf-8")


def test_the_block_for_dask_runs_with_a_cluster(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs the extra `dask`")
    (block,) = of_kind("python", "dask")
    names: dict[str, Any] = {"dspy": dspy, "RLMDocstringOptimizer": RLMDocstringOptimizer}
    with (
        pytest.importorskip("dask").config.set({"temporary-directory": str(tmp_path)}),
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
    ):
        exec(block.text.replace("tcp://scheduler:8786", cluster.scheduler_address), names)
        with names["client"]:
            assert names["on_dask"].executor.submit(abs, -1).result() == 1


def test_the_table_of_events_has_every_event_with_its_fields() -> None:
    rows = table_after("events", "docs/events.md")
    documented = {kind.strip("`"): fields.replace("`", "").split(", ") for kind, fields, _ in rows}
    kinds: tuple[type, ...] = get_args(Event)
    assert documented == {kind.__name__: [field.name for field in dataclasses.fields(kind)] for kind in kinds}


def test_a_callback_and_the_events_file_tell_of_every_run(session: Session) -> None:
    followed, told = session.names["followed"], session.names["scores"]
    assert [run_id for run_id, _, _ in told] == [run["run_id"] for run in followed.trial_logs]
    (lines,) = [text for (page, _), text in session.printed.items() if page == "docs/events.md" and text]
    assert [line.split()[1:] for line in lines.splitlines()] == [[str(one) for one in run] for run in told]


def test_the_configuration_table_is_the_constructor() -> None:
    documented = {name.strip("`"): default.strip("`") for name, default, _ in table_after("configuration")}
    parameters = inspect.signature(RLMDocstringOptimizer).parameters
    assert set(documented) == set(parameters)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            assert documented[name] == "required"
        elif name != "kernel":  # its None stands for the factory that the table names
            assert documented[name] == repr(parameter.default)
