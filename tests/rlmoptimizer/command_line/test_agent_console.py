"""The console on an agent's kernel: found from its run, and never waiting behind the agent's cell."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from command import Command
from stored_optimization import finish, write_small
from terminal import console_environment

from kernel_bridge import KernelInterpreter
from rlmoptimizer.command_line import agent_kernel
from rlmoptimizer.command_line.typed_requests import answer, is_request
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.outcome.ending import AgentOutcome
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.run_store import RunStore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    """Of an optimization that this process works on."""
    with write_small(tmp_path / "kept", ends=False) as store:
        yield store


def started(store: RunStore, connection_file: object) -> None:
    store.record_event("KernelStarted", {"interpreter": "KernelInterpreter", "connection_file": connection_file})


# what is typed


@pytest.mark.parametrize(
    "code",
    ["note", "note = 1", "note('a'); 1", "x.note('a')", "note('a') + 1", "print(note('a'))", "# pause()", "pause(", ""],
)
def test_only_a_lone_call_is_a_request(code: str) -> None:
    assert not is_request(code)


def test_a_request_is_done_and_one_that_cannot_be_is_explained(store: RunStore) -> None:
    requests = Requests(store.path)
    assert "waits after its turn" in answer(" pause()  # now", store)
    assert requests.pausing
    assert "goes on" in answer("unpause()", store)
    assert not requests.pausing
    assert "noted" in answer("note('''two\nlines''')", store)
    assert requests.take_notes() == ["two\nlines"]
    for wrong in ("note()", "note(1)", "note(text)", "note(text='a')", "note(f'{1}')", "note('a', 'b')"):
        assert is_request(wrong)
        assert "one text in quotes" in answer(wrong, store)
    assert answer("pause(1)", store) == "pause takes nothing: pause()"
    assert answer("note('')", store) != ""
    assert (requests.pausing, requests.take_notes()) == (False, [])


def test_of_an_agent_that_has_ended_its_work_nothing_is_asked(store: RunStore) -> None:
    AgentOutcome({}, None, "", "submitted").record(store)
    for typed in ("pause()", "unpause()", "note('late')"):
        assert "only its result is being measured" in answer(typed, store)
    assert not Requests(store.path).directory.exists()


# which kernel


def test_without_a_live_kernel_the_reason_is_said(command: Command, store: RunStore, tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    assert "no kernel yet; it starts after the baseline" in command("console", directory).refused(1)
    started(store, None)
    assert "none that a console can attach to" in command("console", directory).refused(1)
    started(store, str(tmp_path / "gone" / "kernel.json"))
    assert "has ended" in command("console", directory).refused(1)
    finish(store)
    assert "is finished, so its agent has no live kernel" in command("console", directory).refused(1)
    store.close()
    write_small(directory, ends=False).close()
    assert "is interrupted" in command("console", directory).refused(1)
    assert "name the directory" in command("console", "--number", "1").refused(2)


def test_a_kernel_of_another_process_than_the_stores_is_refused(
    command: Command, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KernelInterpreter(confinement="off") as interpreter:
        interpreter.execute("1")
        started(store, str(interpreter.connection_file))
        # The right one; it comes as far as to this process, which has no terminal.
        assert "needs a terminal" in command("console", store.path).refused(2)
        assert "needs a terminal" in command("console").refused(2)
        with write_small(store.path.parent, ends=False):
            assert "2 optimizations run" in command("console").refused(2)
        monkeypatch.setattr(agent_kernel, "holder", lambda path: 1)
        assert "does not belong to the process" in command("console", store.path).refused(1)
        assert "name the run_storage_dir" in command("console").refused(1)


def test_where_nothing_runs_a_directory_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_kernel, "live_sessions", list)
    with pytest.raises(InvalidSetup, match="no kernel of yours is live"):
        agent_kernel.running_stores()


def test_without_the_extra_one_line_says_what_to_install(
    command: Command, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = agent_kernel.AgentKernel(store.path, store.path, 1, 1)
    monkeypatch.setattr(agent_kernel.AgentKernel, "of", lambda store: kernel)
    monkeypatch.delitem(sys.modules, "rlmoptimizer.command_line.console_shell", raising=False)
    monkeypatch.setitem(sys.modules, "jupyter_console", None)
    monkeypatch.setitem(sys.modules, "jupyter_console.app", None)
    assert "pip install jupyter_console" in command("console", store.path).refused(1)


# what a kernel sends


def test_no_colour_of_a_kernel_goes_on_after_its_text() -> None:
    from rlmoptimizer.command_line.console_shell import printable_content

    assert printable_content({"text": "\x1b[8mhidden", "name": "\x1b[2J"}) == {
        "text": "\x1b[8mhidden\x1b[0m",
        "name": "\u241b[2J",
    }


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"matches": "ab", "cursor_start": 0},
        {"matches": ["ab"], "cursor_start": -5},
        {"matches": ["ab"], "cursor_start": 10**9},
        {"matches": ["ab"], "cursor_start": "0"},
        {"matches": [["ab"], None, "a\nnote('b')"], "cursor_start": 2},
    ],
)
def test_an_odd_completion_offers_nothing(content: dict[str, Any]) -> None:
    from rlmoptimizer.command_line.console_shell import completions

    assert completions(content, 3)["matches"] == []
    assert completions({"matches": ["abc"], "cursor_start": 1}, 3)["matches"] == ["abc"]


# at a terminal


def test_a_person_looks_around_and_never_waits_behind_the_agents_cell(store: RunStore, tmp_path: Path) -> None:
    import pexpect

    entered, leave = threading.Event(), threading.Event()

    def hold() -> str:
        entered.set()
        assert leave.wait(200)
        return "held"

    tools: dict[str, Any] = {"hold": hold, "evaluate_program": lambda n: [n]}
    with KernelInterpreter(tools, confinement="off") as interpreter, ThreadPoolExecutor(1) as pool:
        interpreter.execute("secret_word = 'xyzzy'")
        started(store, str(interpreter.connection_file))
        terminal = pexpect.spawn(
            sys.executable,
            ["-m", "rlmoptimizer", "console", str(tmp_path / "kept")],
            timeout=60,
            encoding="utf-8",
            dimensions=(40, 120),
            env=console_environment(tmp_path),  # type: ignore[arg-type]
        )
        try:
            terminal.expect("The kernel of the agent that optimizes in")
            terminal.expect("10 of 34 units spent")
            terminal.expect(r"In \[")
            terminal.send("secret_word.upper(), evaluate_program(7)\r")
            terminal.expect(r"'XYZZY', \[7\]")
            terminal.send("print('\\x1b' + '[2J' + '\\u202e' + 'shown')\r")
            terminal.expect("\u241b\\[2J\\\\u202eshown")
            terminal.send("input('password: ')\r")
            terminal.expect("StdinNotImplementedError: raw_input")
            # The agent's cell begins, and stays.
            store.begin_iteration("hold()")
            agent = pool.submit(interpreter.execute, "hold()")
            assert entered.wait(60)
            terminal.send("secret_word\r")
            terminal.expect("not run: a cell of the agent runs")
            terminal.send("pause()\r")
            terminal.expect("pause asked")
            terminal.send("note('look at the dates')\r")
            terminal.expect("noted")
            requests = Requests(store.path)
            assert requests.pausing
            assert requests.take_notes() == ["look at the dates"]
            # It ends, and the agent waits: a cell of the person runs at once.
            leave.set()
            assert agent.result(60) == "held"
            store.record_iteration("", "hold()", "held")
            terminal.send("secret_word[::-1]\r")
            terminal.expect("yzzyx")
            # Another kernel has taken the place of this one, and is at work.
            started(store, str(interpreter.connection_file))
            store.begin_iteration("hold()")
            terminal.send("secret_word\r")
            terminal.expect("not run: this kernel has ended")
            terminal.send("exit\r")
            terminal.expect("this lets it go on: rlmoptimizer unpause")
            terminal.expect(pexpect.EOF)
        finally:
            leave.set()
            terminal.close(force=True)
        assert terminal.exitstatus == 0
        assert interpreter.execute("secret_word") == "xyzzy"
    requests.clear()
