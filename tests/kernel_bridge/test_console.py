"""A person's client on a live kernel: it sees what the agent has, may call the tools, and leaves no trace."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from dspy.primitives.code_interpreter import CodeExecutionError
from jupyter_client.blocking.client import BlockingKernelClient
from terminal import console_environment

from kernel_bridge import KernelInterpreter, Limits, live_sessions
from kernel_bridge.__main__ import main
from kernel_bridge.console import table

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client", "ignore:unclosed:ResourceWarning")


class Console:
    """What `jupyter console --existing` does, without the terminal."""

    def __init__(self, connection_file: Path) -> None:
        self.client = BlockingKernelClient(connection_file=str(connection_file))
        self.client.load_connection_file()
        self.client.hb_channel.time_to_dead = 60.0  # by default a machine that stands still for a second kills a kernel
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str) -> tuple[str, dict[str, Any]]:
        """What it shows, and the reply."""
        shown: list[str] = []

        def show(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                shown.append(content["text"])
            elif message["msg_type"] in ("execute_result", "display_data"):
                shown.append(content["data"]["text/plain"] + "\n")
            elif message["msg_type"] == "error":
                shown.append("\n".join(content["traceback"]))

        reply = self.client.execute_interactive(code, output_hook=show, timeout=60, allow_stdin=False)
        return "".join(shown), reply["content"]

    def close(self) -> None:
        self.client.stop_channels()
        self.client.context.term()


class ControlClient:
    """A client that has opened the control channel alone."""

    def __init__(self, interpreter: KernelInterpreter) -> None:
        interpreter.start()
        self._client = BlockingKernelClient(connection_file=str(interpreter.connection_file))
        self._client.load_connection_file()
        self._client.control_channel.start()
        self._asked: dict[str, str] = {}

    def ask(self, kind: str) -> None:
        message = self._client.session.msg(kind, {})
        self._asked[message["header"]["msg_id"]] = kind
        self._client.control_channel.send(message)

    def answer(self) -> str:
        """The kind of the next reply, which must be one to what was asked."""
        reply = self._client.control_channel.get_msg(timeout=60)
        assert self._asked.pop(reply["parent_header"]["msg_id"]).replace("request", "reply") == reply["msg_type"]
        return reply["msg_type"]

    def close(self) -> None:
        self._client.stop_channels()
        self._client.context.term()
        gc.collect()


@pytest.fixture(scope="module", params=["auto", "off"])
def live(request: pytest.FixtureRequest) -> Iterator[tuple[KernelInterpreter, Console]]:
    with KernelInterpreter(confinement=request.param, limits=Limits(cell_seconds=30)) as interpreter:
        interpreter.execute("1")
        assert interpreter.connection_file is not None
        console = Console(interpreter.connection_file)
        yield interpreter, console
        console.close()
        gc.collect()  # what its client leaves unclosed is told of here, where that is ignored, and in no other test


@pytest.fixture
def interpreter(live: tuple[KernelInterpreter, Console]) -> KernelInterpreter:
    live[0].bind(tools={"add": lambda a, b: a + b})
    return live[0]


@pytest.fixture
def console(live: tuple[KernelInterpreter, Console]) -> Console:
    return live[1]


@pytest.mark.smoke
def test_a_person_sees_the_agents_variables_and_calls_its_tools(
    interpreter: KernelInterpreter, console: Console
) -> None:
    interpreter.execute("rows = [1, 2]\ndef total(): return sum(rows)", {"given": "input"})
    assert console.run("rows, given, total()")[0] == "([1, 2], 'input', 3)\n"
    assert console.run("print(add(1, b=2))")[0] == "3\n"
    assert "add(a, b)" in console.run("help(add)")[0]


def test_a_persons_cells_stay_out_of_the_agents_output(interpreter: KernelInterpreter, console: Console) -> None:
    console.run("print('the person was here')\n1 / 0")
    assert interpreter.execute("print('agent')") == "agent"
    assert console.run("'only shown there'")[0] == "'only shown there'\n"
    assert interpreter.execute("'agent again'") == "agent again"


def test_a_persons_failure_is_shown_to_the_person_alone(interpreter: KernelInterpreter, console: Console) -> None:
    shown, reply = console.run("1 / 0")
    assert (reply["status"], reply["ename"]) == ("error", "ZeroDivisionError")
    assert "ZeroDivisionError" in shown
    assert interpreter.execute("1") == "1"
    with pytest.raises(CodeExecutionError, match="NameError"):
        interpreter.execute("undefined")
    assert console.run("2")[0] == "2\n"


def test_the_agents_cell_is_run_also_behind_a_persons_that_fails(
    interpreter: KernelInterpreter, console: Console
) -> None:
    for _ in range(3):
        console.client.execute("import time; time.sleep(0.4); 1 / 0", allow_stdin=False)
        while console.client.get_iopub_msg(timeout=60)["msg_type"] != "execute_input":
            pass  # until it runs: the agent's is behind it
        assert interpreter.execute("2 + 3") == "5"


def test_a_person_cannot_submit_for_the_agent(interpreter: KernelInterpreter, console: Console) -> None:
    judged: list[Any] = []
    interpreter.submit_validator = judged.append
    shown, reply = console.run("SUBMIT(1)")
    assert reply["ename"] == "RuntimeError"
    assert "none running" in shown
    assert judged == []
    interpreter.submit_validator = None
    assert interpreter.execute("1") == "1"


def test_a_persons_cell_may_not_exit_the_kernel(interpreter: KernelInterpreter, console: Console) -> None:
    interpreter.execute("kept = 1")
    for code in ("exit()", "quit()", "exit"):
        _, reply = console.run(code)
        assert [payload["keepkernel"] for payload in reply["payload"] if payload["source"] == "ask_exit"] == [True]
    console.run("raise SystemExit")
    for restart in (False, True):
        reply = console.client.shutdown(restart=restart, reply=True, timeout=60)
        assert reply["content"]["status"] == "aborted"
    assert interpreter.execute("kept") == "1"
    with pytest.raises(CodeExecutionError, match="ended by its host"):
        interpreter.execute("get_ipython().kernel.do_shutdown(False)")
    assert interpreter.execute("kept") == "1"


def test_a_person_watches_the_agent_at_work(interpreter: KernelInterpreter, console: Console) -> None:
    console.run("1")
    assert interpreter.execute("print('seen live')\n6 * 7") == "seen live\n42"
    seen: list[str] = []
    while "42" not in "".join(seen):
        message = console.client.get_iopub_msg(timeout=30)
        content = message["content"]
        if message["msg_type"] == "stream":
            seen.append(content["text"])
        elif message["msg_type"] == "execute_result":
            seen.append(content["data"]["text/plain"])
        elif message["msg_type"] == "execute_input":
            seen.append(content["code"])
    assert "".join(seen).startswith("print('seen live')\n6 * 7seen live\n")


def test_a_person_sees_a_line_while_its_cell_still_runs(interpreter: KernelInterpreter, console: Console) -> None:
    seen = threading.Event()
    interpreter.tools["wait"] = lambda: seen.wait(60)
    console.run("1")
    with ThreadPoolExecutor(1) as pool:
        agent = pool.submit(interpreter.execute, "for n in range(3): print(n)\nprint('so far', end='')\nwait()")
        shown = ""
        while "so far" not in shown:
            message = console.client.get_iopub_msg(timeout=30)
            shown += message["content"]["text"] if message["msg_type"] == "stream" else ""
        seen.set()
        assert agent.result(60) == "0\n1\n2\nso farTrue"
    assert shown == "0\n1\n2\nso far"


def test_a_person_who_comes_in_the_middle_of_a_cell_sees_what_it_prints_from_then_on() -> None:
    begun, seen = threading.Event(), threading.Event()

    def has_seen() -> bool:
        begun.set()
        return seen.is_set()

    code = "print('before')\nwhile not has_seen():\n    for n in range(50): print('after')\nprint('end')"
    with KernelInterpreter({"has_seen": has_seen}) as interpreter, ThreadPoolExecutor(1) as pool:
        interpreter.start()
        agent = pool.submit(interpreter.execute, code)
        assert begun.wait(60)
        client = BlockingKernelClient(connection_file=str(interpreter.connection_file))
        client.load_connection_file()
        client.iopub_channel.start()
        shown = ""
        try:
            while not shown.endswith("end\n"):
                message = client.get_iopub_msg(timeout=60)
                shown += message["content"]["text"] if message["msg_type"] == "stream" else ""
                if shown:
                    seen.set()
        finally:
            seen.set()
            client.stop_channels()
            client.context.term()
        assert "before" not in shown
        assert shown.replace("after\n", "") in ("end\n", "\nend\n")  # it may begin within a line
        assert str(agent.result(60)).startswith("before\nafter\n")
    gc.collect()


def test_a_persons_variables_are_there_for_the_agent(interpreter: KernelInterpreter, console: Console) -> None:
    console.run("hint = 'look at row 3'")
    assert interpreter.execute("hint") == "look at row 3"


IPYTHON_IS_THERE = "print('tornado' in getattr(__import__('sys'), 'mod' + 'ules'))"


@pytest.mark.parametrize("confinement", ["auto", "off"])
def test_a_person_finds_all_of_jupyter_in_a_kernel_that_has_only_run_plain_python(
    confinement: str, wait_until: Callable[..., None]
) -> None:
    with KernelInterpreter({"add": lambda a, b: a + b}, confinement=confinement) as interpreter:
        interpreter.execute("a_rather_long_name = add(1, 2)\nprint('agent')")
        client = BlockingKernelClient(connection_file=str(interpreter.connection_file))
        client.load_connection_file()
        client.hb_channel.time_to_dead = 60.0
        client.hb_channel.start()
        client.hb_channel.unpause()
        wait_until(client.hb_channel.is_beating, "a heartbeat is answered")
        client.stop_channels()
        client.context.term()
        assert interpreter.execute(IPYTHON_IS_THERE) == "False"
        with closing(Console(interpreter.connection_file)) as console:  # type: ignore[arg-type]
            assert console.run("a_rather_long_name, add(3, 4)")[0] == "(3, 7)\n"
            assert console.run("_, In[1], Out")[1]["status"] == "ok"
            assert console.run("1")[1]["execution_count"] == 3
            matches = console.client.complete("a_rather_lo", reply=True, timeout=60)["content"]["matches"]
            assert "a_rather_long_name" in matches
            assert interpreter.execute("a_rather_long_name + 1") == "4"
    gc.collect()


@pytest.mark.parametrize("kind", ["kernel_info_request", "interrupt_request", "shutdown_request"])
def test_a_message_on_the_control_channel_is_answered_by_a_kernel_that_has_only_run_plain_python(kind: str) -> None:
    with KernelInterpreter(confinement="off") as interpreter, closing(ControlClient(interpreter)) as client:
        interpreter.execute("kept = 3")
        client.ask(kind)
        assert client.answer() == kind.replace("request", "reply")
        assert interpreter.execute("kept") == "3"


@contextmanager
def endless_cell(confinement: str = "off") -> Iterator[tuple[KernelInterpreter, ControlClient, Future[Any]]]:
    """A kernel that has kept 3 and runs a cell of plain Python without end, a client, and what comes of the cell."""
    begun = threading.Event()
    with (
        KernelInterpreter({"begun": begun.set}, confinement=confinement) as interpreter,
        closing(ControlClient(interpreter)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        interpreter.execute("kept = 3")
        agent = pool.submit(interpreter.execute, "begun()\nwhile True: pass")
        assert begun.wait(60)
        yield interpreter, client, agent


@pytest.mark.parametrize("confinement", ["auto", "off"])
def test_a_person_interrupts_a_cell_of_plain_python(confinement: str) -> None:
    with endless_cell(confinement) as (interpreter, client, agent):
        client.ask("interrupt_request")
        assert client.answer() == "interrupt_reply"
        with pytest.raises(CodeExecutionError, match="KeyboardInterrupt"):
            agent.result(60)
        client.ask("interrupt_request")  # nothing runs
        assert client.answer() == "interrupt_reply"
        assert interpreter.execute("print(kept)") == "3"
        assert interpreter.execute(IPYTHON_IS_THERE) == "False"


def test_a_person_interrupts_a_cell_of_plain_python_that_another_message_waits_for() -> None:
    with endless_cell() as (interpreter, client, agent):
        for kind in ("kernel_info_request", "shutdown_request", "interrupt_request"):
            client.ask(kind)
        assert client.answer() == "interrupt_reply"
        with pytest.raises(CodeExecutionError, match="KeyboardInterrupt"):
            agent.result(60)
        assert [client.answer(), client.answer()] == ["kernel_info_reply", "shutdown_reply"]
        client.ask("interrupt_request")
        assert client.answer() == "interrupt_reply"
        assert interpreter.execute("print(1)") == "1"


def test_a_person_interrupts_a_cell_of_plain_python_that_thousands_of_messages_wait_for() -> None:
    with endless_cell() as (interpreter, client, agent):
        for _ in range(2500):  # more than a socket of ZeroMQ keeps for whoever does not read it
            client.ask("shutdown_request")
        client.ask("interrupt_request")
        assert client.answer() == "interrupt_reply"
        with pytest.raises(CodeExecutionError, match="KeyboardInterrupt"):
            agent.result(60)
        assert {client.answer() for _ in range(2500)} == {"shutdown_reply"}
        assert interpreter.execute("print(1)") == "1"


def test_messages_of_somebody_without_the_key_change_nothing_in_a_kernel_that_has_only_run_plain_python() -> None:
    deep = b"[" * 300_000 + b"]" * 300_000
    with KernelInterpreter(confinement="off") as interpreter, zmq.Context() as context:
        interpreter.execute("kept = 3")
        info = json.loads(Path(str(interpreter.connection_file)).read_text())
        shell, iopub = context.socket(zmq.DEALER), context.socket(zmq.XSUB)
        for socket, channel in ((shell, "shell"), (iopub, "iopub")):
            socket.linger = 0
            socket.connect(f"ipc://{info['ip']}-{info[channel + '_port']}")
        for header in (deep, b"{}", b'{"msg_type": "execute_request"}', b"\xff"):
            shell.send_multipart([b"<IDS|MSG>", b"bad", header, header, b'{"kernel_bridge": {"number": 1}}', b"{}"])
        for _ in range(10):
            iopub.send(b"\x02junk")
        assert interpreter.execute("kept") == "3"
        with closing(Console(interpreter.connection_file)) as console:  # type: ignore[arg-type]
            assert console.run("kept + 1")[0] == "4\n"
        shell.close()
        iopub.close()
    gc.collect()


def test_completion_and_inspection_work(interpreter: KernelInterpreter, console: Console) -> None:
    interpreter.execute("a_rather_long_name = 1")
    matches = console.client.complete("a_rather_lo", reply=True, timeout=60)["content"]["matches"]
    assert "a_rather_long_name" in matches
    found = console.client.inspect("add", reply=True, timeout=60)["content"]
    assert found["found"]
    assert "add(a, b)" in found["data"]["text/plain"]


def test_a_person_configures_the_completer_before_anything_was_completed(console: Console) -> None:
    assert "IPCompleter" in console.run("%config")[0]
    assert console.run("%config IPCompleter.greedy")[0] == "False\n"
    console.run("%config IPCompleter.greedy = True")
    assert console.run("get_ipython().Completer.greedy")[0] == "True\n"
    assert "no attribute 'no_such_part'" in console.run("get_ipython().no_such_part")[0]


def test_a_persons_questions_are_shown_by_the_pager(console: Console) -> None:
    _, reply = console.run("print?")
    assert [payload["source"] for payload in reply["payload"]] == ["page"]
    assert "sep" in reply["payload"][0]["data"]["text/plain"]
    assert "%connect_info" in console.run("%lsmagic")[0]
    assert "shell_port" in console.run("%connect_info")[0]


def test_the_agents_cell_waits_for_a_persons_and_both_have_their_answers(
    interpreter: KernelInterpreter, console: Console, wait_until: Callable[..., None]
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> str:
        entered.set()
        assert leave.wait(60)
        return "held"

    def work() -> Any:
        assert entered.wait(60)
        return interpreter.execute("print('after the person')")

    def let_go() -> None:
        assert entered.wait(60)
        wait_until(lambda: interpreter._session._turn.is_taken, "the agent's cell has come")
        leave.set()

    interpreter.tools["hold"] = hold
    interpreter.execute("1")
    with ThreadPoolExecutor(2) as pool:
        agent, _ = pool.submit(work), pool.submit(let_go)
        # In this thread: in another one the client would make an event loop that nobody closes.
        assert console.run("hold()")[0] == "'held'\n"
        assert agent.result(60) == "after the person"


@pytest.mark.parametrize("confinement", ["auto", "off"])
def test_a_persons_long_cell_costs_the_agent_no_time(confinement: str) -> None:
    began = threading.Event()
    began.set()
    limits = Limits(cell_seconds=1)

    def work(interpreter: KernelInterpreter) -> str:
        assert began.wait(60)
        try:
            return str(interpreter.execute("print('after the person')"))
        except CodeExecutionError as error:
            return str(error)

    with KernelInterpreter({"began": began.set}, limits=limits, confinement=confinement) as interpreter:
        work(interpreter)  # brings the tool
        assert interpreter.connection_file is not None
        with closing(Console(interpreter.connection_file)) as console:
            for _ in range(5):  # a machine that stands still for as long may cut the agent's cell all the same
                began.clear()
                with ThreadPoolExecutor(1) as pool:
                    agent = pool.submit(work, interpreter)
                    # Three times what the agent may take, and in no host tool, whose time would not count anyway.
                    person = console.run("import time\nbegan()\ntime.sleep(3)\n'slept'")[0]
                    found = person, agent.result(60)
                if found == ("'slept'\n", "after the person"):
                    break
    gc.collect()  # as for the console of the other tests
    assert found == ("'slept'\n", "after the person")


# -- finding and attaching -------------------------------------------------------------------------------------------


def test_live_sessions_are_listed_with_their_connection_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with KernelInterpreter(confinement="off") as interpreter:
        file = interpreter.connection_file
        assert file is not None
        assert file in [session.connection_file for session in live_sessions()]
        assert main(["list"]) == 0
        listed = capsys.readouterr().out
        assert str(file) in listed
        assert listed.splitlines()[0].split()[:2] == ["ID", "HOST"]
        code = "from kernel_bridge.__main__ import main; main(['list'])"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert str(file) in other.stdout
    assert file not in [session.connection_file for session in live_sessions()]
    assert live_sessions(tmp_path) == []
    assert table([]) == "no live sessions"


def test_attaching_needs_to_know_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attach", "no-such-id"]) == 1
    assert "no live session whose id starts with 'no-such-id'" in capsys.readouterr().err
    with KernelInterpreter(confinement="off"), KernelInterpreter(confinement="off"):
        assert main(["attach"]) == 1
        assert "which one?" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_the_real_jupyter_console_attaches(tmp_path: Path) -> None:
    import pexpect

    calls: list[int] = []
    with KernelInterpreter({"ping": lambda n: calls.append(n) or "pong"}) as interpreter:
        interpreter.execute("secret_word = 'xyzzy'")
        arguments = ["-m", "kernel_bridge", "attach", interpreter.connection_file.parent.name]  # type: ignore[union-attr]
        environment: Any = console_environment(tmp_path)
        terminal = pexpect.spawn(
            sys.executable, arguments, timeout=60, encoding="utf-8", dimensions=(40, 120), env=environment
        )
        try:
            terminal.expect(r"In \[")
            terminal.send("secret_word.upper(), ping(7)\r")
            terminal.expect("XYZZY")
            assert calls == [7]
            terminal.expect(r"In \[")
            terminal.send("exit\r")
            terminal.expect(pexpect.EOF)
        finally:
            terminal.close(force=True)
        assert interpreter.execute("secret_word") == "xyzzy"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_the_real_jupyter_console_waits_for_the_end_of_a_cell_and_can_be_left_meanwhile(tmp_path: Path) -> None:
    import pexpect

    begun, over = threading.Event(), threading.Event()
    tools = {"begun": begun.set, "end": lambda: over.wait(120)}
    with KernelInterpreter(tools, confinement="off") as interpreter, ThreadPoolExecutor(1) as pool:
        interpreter.start()
        arguments = ["-m", "kernel_bridge", "attach", interpreter.connection_file.parent.name]  # type: ignore[union-attr]
        # However little patience the person's own settings have.
        environment: Any = console_environment(tmp_path, kernel_timeout=0.0)
        options: Any = {"timeout": 60, "encoding": "utf-8", "dimensions": (40, 120), "env": environment}
        agent = pool.submit(interpreter.execute, "begun()\nprint(end())")
        try:
            assert begun.wait(60)
            with closing(pexpect.spawn(sys.executable, arguments, **options)) as terminal:
                terminal.expect_exact("the kernel is busy; the console opens when it answers (Ctrl-C leaves)")
                terminal.sendintr()
                terminal.expect(pexpect.EOF)
                assert "Traceback" not in terminal.before
                terminal.wait()
                assert terminal.exitstatus == 130
            with closing(pexpect.spawn(sys.executable, arguments, **options)) as terminal:
                terminal.expect_exact("the kernel is busy")
                over.set()
                terminal.expect(r"In \[")
                terminal.send("exit\r")
                terminal.expect(pexpect.EOF)
        finally:
            over.set()
        assert agent.result(60) == "True"
