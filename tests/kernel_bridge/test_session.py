"""KernelSession: a cell's own time, interrupts, bounds, deaths and restarts."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from dspy.primitives.code_interpreter import CodeInterpreterError
from living import cut_short, settled

from kernel_bridge import (
    Cell,
    KernelDied,
    KernelInterpreter,
    KernelSession,
    KernelUnresponsive,
    Limits,
    NotSendable,
    Pickled,
    SessionBusy,
    SessionClosed,
    SessionLost,
)

SHORT = Limits(cell_seconds=0.5)


def plain(**options: Any) -> KernelSession:
    return KernelSession(**{"confinement": "off", **options})


@pytest.fixture(scope="module")
def shared() -> Iterator[KernelSession]:
    with KernelSession() as session:
        yield session


@pytest.fixture
def session(shared: KernelSession, patient: None) -> KernelSession:
    shared.tools, shared.judge = {}, None
    return shared


@pytest.fixture(scope="module")
def shared_short() -> Iterator[KernelSession]:
    with KernelSession(limits=SHORT) as session:
        yield session


@pytest.fixture
def short_session(shared_short: KernelSession, patient: None) -> KernelSession:
    """For cells that are to run into their limit; any other may do so on a machine that stands still for as long."""
    shared_short.tools, shared_short.judge = {}, None
    return shared_short


class Gate:
    """A host tool that can be stopped at: `entered` says that a call is in, `open` lets all calls go on."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()

    def __call__(self, answer: Any = "late") -> Any:
        self.entered.release()
        assert self._open.wait(60)
        return answer

    def open(self) -> None:
        self._open.set()

    def wait_for(self, calls: int = 1) -> None:
        for _ in range(calls):
            assert self.entered.acquire(timeout=60)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


# -- a cell's own time -----------------------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "import threading\nthreading.Event().wait()",
        "import asyncio\nawait asyncio.sleep(1000)",
        "import subprocess\nsubprocess.run(['sleep', '1000'])",
    ],
)
def test_a_cell_that_runs_too_long_is_interrupted_and_its_state_kept(short_session: KernelSession, code: str) -> None:
    settled(short_session, "kept = 0")
    outcome = cut_short(short_session, f"kept = 1\nprint('begun')\n{code}")
    assert outcome.timed_out
    assert outcome.death is None
    assert outcome.failure is None or outcome.failure.name in ("KeyboardInterrupt", "CancelledError")
    assert settled(short_session, "kept").text == "1\n"


def test_a_cell_may_clean_up_after_its_interrupt(short_session: KernelSession) -> None:
    # On one line, Python 3.11 itself would not catch it: the jump back belongs to no `try` there.
    code = "try:\n    print('begun')\n    while True:\n        x = 1\nexcept KeyboardInterrupt:\n    print('cleaned')"
    outcome = cut_short(short_session, code)
    assert outcome.timed_out
    assert outcome.failure is None
    assert outcome.text == "begun\ncleaned\n"


def test_time_inside_host_tools_is_not_the_cells_own(short_session: KernelSession) -> None:
    waited = threading.Event()
    short_session.tools = {"slow": lambda: waited.wait(2.5 * SHORT.cell_seconds) or "slept"}
    assert settled(short_session, "slow()").text == "slept\n"


def test_time_after_a_host_tool_is_the_cells_own_again(short_session: KernelSession) -> None:
    short_session.tools = {"quick": lambda: None}
    assert cut_short(short_session, "quick()\nprint('begun')\nwhile True: pass").timed_out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the CPU time is not known")
def test_a_cell_that_computes_beside_a_call_uses_its_own_time(short_session: KernelSession, gate: Gate) -> None:
    short_session.tools = {"wait": gate}
    code = "import threading\nthreading.Thread(target=wait, daemon=True).start()\nprint('begun')\nwhile True: pass"
    outcome = cut_short(short_session, code)
    assert outcome.timed_out == "ran longer than 0.5 s of its own time"
    gate.wait_for()


def test_a_cell_that_idles_beside_a_call_comes_to_an_end(gate: Gate) -> None:
    limits = replace(SHORT, cell_total_seconds=1)
    with plain(limits=limits, tools={"wait": gate}) as session:
        # In a cell before, so that not one moment of the last one is without a call.
        settled(session, "import threading, time\nthreading.Thread(target=wait, daemon=True).start()")
        gate.wait_for()
        settled(session, "pass")  # the checkpoint has been made, too
        outcome = session.run("time.sleep(1000)")
        assert outcome.timed_out == "took longer than 1 s, with the host tools that it called"
        assert settled(session, "print(1)").text == "1\n"
        gate.open()


def test_calls_at_once_from_a_cell_that_waits_for_them_are_excused(short_session: KernelSession) -> None:
    short_session.tools = {"pause": lambda: time.sleep(SHORT.cell_seconds)}
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool:
    for _ in pool.map(lambda _: pause(), range(4)): pass
"""
    settled(short_session, code)


def test_a_cell_that_takes_no_interrupt_is_killed_and_its_successor_has_what_was_before() -> None:
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('begun')\nwhile True: pass"
    with plain(limits=SHORT) as session:
        settled(session, "before = 1")
        outcome = cut_short(session, deaf)
        assert outcome.death is not None
        assert "longer than 0.5 s of its own time and did not react to an interrupt" in outcome.death.reason
        assert outcome.death.restored == ("before",)
        assert settled(session, "before").text == "1\n"


def test_a_submission_is_kept_though_the_cell_went_on_too_long(short_session: KernelSession) -> None:
    code = "try:\n    SUBMIT(1)\nexcept KeyboardInterrupt:\n    raise\nexcept:\n    print('begun')\nwhile True: pass"
    outcome = cut_short(short_session, code)
    assert outcome.submitted == {"output": 1}
    assert outcome.failure is None


# -- interrupts ------------------------------------------------------------------------------------------------------


def test_the_answer_to_an_interrupted_call_is_dropped(
    session: KernelSession, gate: Gate, beside: ThreadPoolExecutor
) -> None:
    session.tools = {"wait": gate, "add": lambda a, b: a + b}
    running = beside.submit(session.run, "kept = 1\nwait()\nkept = 2")
    gate.wait_for()
    session.interrupt()
    outcome = running.result(30)
    assert outcome.failure is not None
    assert outcome.failure.name == "KeyboardInterrupt"
    assert not outcome.timed_out
    gate.open()
    assert session.run("print(add(1, 1))").text == "2\n"
    assert session.run("kept").text == "1\n"


def test_an_interrupted_calls_answer_may_come_while_the_next_call_waits(
    session: KernelSession, beside: ThreadPoolExecutor
) -> None:
    first, second = Gate(), Gate()
    session.tools = {"first": first, "second": second}
    running = beside.submit(session.run, "first('of the first')")
    first.wait_for()
    session.interrupt()
    running.result(30)
    running = beside.submit(session.run, "second('of the second')")
    second.wait_for()
    first.open()
    second.open()
    assert running.result(30).text == "of the second\n"


def test_an_interrupt_leaves_the_calls_of_other_threads_alone(
    session: KernelSession, gate: Gate, beside: ThreadPoolExecutor
) -> None:
    session.tools = {"wait": gate}
    code = """
import threading
answers = []
threads = [threading.Thread(target=lambda n=n: answers.append(wait(n))) for n in range(3)]
for t in threads: t.start()
wait('main')
"""
    running = beside.submit(session.run, code)
    gate.wait_for(4)
    session.interrupt()
    outcome = running.result(30)
    assert outcome.failure is not None
    assert outcome.failure.name == "KeyboardInterrupt"
    gate.open()
    assert session.run("for t in threads: t.join()\nsorted(answers)").text == "[0, 1, 2]\n"


def test_an_interrupt_that_comes_just_before_a_call_waits_is_not_lost(
    session: KernelSession, beside: ThreadPoolExecutor
) -> None:
    called, answered = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        called.release()
        assert answered.wait(60)

    session.tools = {"wait": wait}
    code = "import threading\nbeside = threading.Thread(target=wait)\nbeside.start()\nwait()"
    for _ in range(20):  # it is lost now and then only: a thread reads the answers, so the main one waits for a lock
        answered.clear()
        running = beside.submit(session.run, code)
        for _ in range(2):
            assert called.acquire(timeout=60)
        session.interrupt()
        outcome = running.result(30)
        assert outcome.failure is not None
        assert outcome.failure.name == "KeyboardInterrupt"
        answered.set()
        assert session.run("beside.join()").failure is None


def test_an_interrupt_without_a_cell_is_nothing(session: KernelSession) -> None:
    session.run("1")
    for _ in range(5):
        session.interrupt()
        assert session.run("'untouched'").text == "untouched\n"
    with plain() as fresh:
        fresh.interrupt()
        assert fresh.run("1").text == "1\n"


def test_an_interrupt_that_comes_as_a_cell_ends_never_hits_the_next(
    session: KernelSession, gate: Gate, beside: ThreadPoolExecutor
) -> None:
    session.tools = {"now": lambda: beside.submit(session.interrupt).result()}
    for _ in range(30):
        session.run("now()")
        assert session.run("[n for n in range(20_000)][-1]").text == "19999\n"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_whose_signal_is_late_never_hits_the_next_cell(session: KernelSession) -> None:
    session.run("import time")
    kernel: Any = session._kernel
    guardian = psutil.Process(kernel.process.pid)  # who sends the signal, when the system lets it

    def press() -> None:
        guardian.suspend()
        session.interrupt()

    def go_on() -> None:
        time.sleep(1.2)
        guardian.resume()

    session.tools = {"press": press, "go_on": go_on}
    session.run("press()")
    assert session.run("go_on()\ntime.sleep(0.3)\n'untouched'").text == "untouched\n"
    session.tools = {}
    own = session.run("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    assert own.failure is not None  # the code's own signal is still one
    assert own.failure.name == "KeyboardInterrupt"


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to the host itself")
def test_a_host_that_is_interrupted_stops_its_cell_and_goes_on(session: KernelSession) -> None:
    session.tools = {"press": lambda: os.kill(os.getpid(), signal.SIGINT)}
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            session.run("kept = 1\npress()\nimport time\ntime.sleep(100)\nkept = 2")
        assert session.run("kept").text == "1\n"


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to the host itself")
def test_a_host_is_interrupted_also_when_another_thread_takes_the_signal(patient: None) -> None:
    # The system may hand it to any thread; nothing wakes the main one then.
    def press() -> None:
        threading.Timer(0.5, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()

    with KernelSession() as session:
        session.tools = {"press": press}
        with pytest.raises(KeyboardInterrupt):
            session.run("kept = 1\npress()\nimport time\ntime.sleep(60)\nkept = 2")
        assert session.run("kept").text == "1\n"


def test_a_tool_that_stops_its_caller_is_never_answered_for(session: KernelSession) -> None:
    def stop() -> None:
        raise SystemExit("no more")

    session.tools = {"stop": stop}
    for _ in range(30):  # the cell's own end races with the news of why
        with pytest.raises(SystemExit, match="no more"):
            session.run("stop()")
    assert session.run("1").text == "1\n"


# -- one cell at a time ----------------------------------------------------------------------------------------------


def test_a_second_cell_is_refused_while_one_runs(
    session: KernelSession, gate: Gate, beside: ThreadPoolExecutor
) -> None:
    session.tools = {"wait": gate}
    running = beside.submit(session.run, "wait()")
    gate.wait_for()
    with pytest.raises(SessionBusy):
        session.run("1")
    gate.open()
    assert running.result(30).text == "late\n"


def test_a_tool_cannot_run_a_cell_of_its_own_session(session: KernelSession) -> None:
    session.tools = {"again": lambda: session.run("1").text}
    outcome = session.run("again()")
    assert outcome.failure is not None
    assert outcome.failure.name == "SessionBusy"


class _Unwritable:
    def __reduce__(self) -> Any:
        "\udcff".encode()


def test_what_cannot_be_sent_is_refused_with_its_path(session: KernelSession) -> None:
    with pytest.raises(NotSendable) as refusal:
        session.run(Cell("1", {"rows": [{"image": object()}]}))
    assert (refusal.value.path, refusal.value.type) == ("rows[0].image", "object")
    with pytest.raises(NotSendable, match="its name holds a lone surrogate") as refusal:
        session.run(Cell("1", {"a\udcff": 1}))
    assert (refusal.value.path, refusal.value.type) == ("a\udcff", "int")
    with pytest.raises(UnicodeEncodeError):  # the caller's own, not the name's
        session.run(Cell("1", {"a": Pickled(_Unwritable())}))
    assert session.run("1").text == "1\n"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
@pytest.mark.parametrize("before", ["1", "get_ipython() is None"])
def test_a_signal_handler_that_raises_between_cells_ends_no_kernel(before: str) -> None:
    code = """
import signal
def late(*_):
    fired()
    raise TimeoutError
signal.signal(signal.SIGALRM, late)
kept = 3
_ = signal.setitimer(signal.ITIMER_REAL, 0.2)
"""
    fired = threading.Event()
    with KernelSession({"fired": fired.set}, confinement="off") as session:
        session.run(before)
        session.run(code)
        assert fired.wait(60)
        assert session.run("kept").text == "3\n"


# -- the end ---------------------------------------------------------------------------------------------------------


def test_a_session_that_is_closed_under_a_running_cell_says_so(gate: Gate, beside: ThreadPoolExecutor) -> None:
    session = plain(tools={"wait": gate})
    running = beside.submit(session.run, "wait()")
    gate.wait_for()
    session.close("the user went away")
    with pytest.raises(SessionClosed, match="the user went away"):
        running.result(30)
    with pytest.raises(SessionClosed, match="the user went away"):
        session.run("1")
    session.close()


def test_nothing_is_left_of_a_closed_session() -> None:
    session = plain()
    session.start()
    assert session.connection_file is not None
    directory = session.connection_file.parent
    session.run("import os\nos.makedirs('deep/er'); os.chmod('deep', 0)\nopen('file', 'w').write('x')")
    session.close()
    session.close()
    assert session.connection_file is None
    assert not directory.exists()


# -- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 10_000)",
        "import os\nwhile True: os.write(1, b'x' * 10_000)",
        "import subprocess\nsubprocess.run(['yes'])",
        "import sys\nwhile True: sys.stderr.write('\\u00e9')",
    ],
)
def test_a_flood_costs_a_fixed_buffer(code: str, patient: None) -> None:
    with plain(limits=Limits(cell_seconds=0.5, output_bytes=1000)) as session:
        for _ in range(10):  # a machine that stands still may let it print nothing
            outcome = cut_short(session, f"print('begun')\n{code}")
            if outcome.omitted:
                break
        assert outcome.timed_out
        assert len(outcome.text) < 1200
        assert outcome.omitted > 0  # how much depends on the machine; that no more is kept does not
        assert f"[{outcome.omitted:,} characters left out]" in outcome.text
        assert settled(session, "print('quiet')").text == "quiet\n"


def test_head_and_tail_meet_exactly_at_the_limit() -> None:
    with plain(limits=Limits(output_bytes=100)) as session:
        assert session.run("print('x' * 99)").text == "x" * 99 + "\n"
        assert session.run("print('x' * 99)").omitted == 0
        over = session.run("print('a' * 50 + 'b' * 7 + 'c' * 49)")
        assert over.omitted == 7
        assert over.text == "a" * 50 + "\n... [7 characters left out] ...\n" + "c" * 49 + "\n"
        pieces = session.run("for c in 'abcdefghij': print(c * 20, end='')")
        assert pieces.text.startswith("a" * 20 + "b" * 20 + "c" * 10 + "\n...")
        assert pieces.text.endswith("...\n" + "h" * 10 + "i" * 20 + "j" * 20)


def test_a_traceback_is_bounded_too() -> None:
    with plain(limits=Limits(output_bytes=10_000)) as session:
        outcome = session.run(
            "import sys\nsys.setrecursionlimit(5000)\n"
            + "\n".join(f"def f{i}(n): f{(i + 1) % 9}(n + 1)" for i in range(9))
            + "\nf0(0)"
        )
        assert outcome.failure is not None
        assert outcome.failure.name == "RecursionError"
        assert len(outcome.failure.traceback) < 3000
        assert "characters left out" in outcome.failure.traceback
        assert session.run("1").text == "1\n"


# -- death and restart -----------------------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(7)", "it exited with status 7"),
        ("import os; os._exit(0)", "it exited with status 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "it was killed by signal 9 (SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "it was killed by signal 11 (SIGSEGV"),
        ("import os; os.abort()", "it was killed by signal 6 (SIGABRT"),
    ],
)
def test_a_kernel_that_dies_has_a_successor_who_knows_why(code: str, reason: str) -> None:
    with KernelSession() as session:
        session.run("kept = [1]\ndef f(): return kept\nimport math\nlock = __import__('threading').Lock()")
        outcome = session.run(f"print('last words')\nkept.append(2)\n{code}")
        assert outcome.death is not None
        assert outcome.death.reason.startswith(reason)
        assert outcome.death.restored == ("f", "kept", "math")
        assert list(outcome.death.lost) == ["lock"]
        assert outcome.death.checkpointed
        assert outcome.text == "last words\n"
        assert session.run("kept, f() is kept, math.pi > 3").text == "([1], True, True)\n"


def test_three_deaths_in_a_row_end_the_session() -> None:
    with plain() as session:
        for _ in range(2):
            assert session.run("import os; os._exit(5)").death is not None
        session.run("'a good cell between'")
        for _ in range(2):
            assert session.run("import os; os._exit(5)").death is not None
        with pytest.raises(KernelDied, match="the third time in a row: it exited with status 5") as lost:
            session.run("import os; os._exit(5)")
        assert isinstance(lost.value, SessionLost)
        assert lost.value.exit_code == 5
        with pytest.raises(SessionClosed, match="third time in a row"):
            session.run("1")


def test_without_restarts_a_kernel_that_answers_nothing_is_told_apart_from_one_that_died() -> None:
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('begun')\nwhile True: pass"
    with plain(restarts=0, limits=SHORT) as session:
        with pytest.raises(KernelUnresponsive, match="did not react to an interrupt"):
            cut_short(session, deaf)
        with pytest.raises(SessionClosed):
            session.run("1")


@pytest.mark.parametrize("restarts", [0, 1])
def test_without_restarts_the_first_death_is_the_end(restarts: int) -> None:
    with plain(restarts=restarts) as session:
        session.run("1")
        with pytest.raises(KernelDied, match="the kernel died: it exited with status 3"):
            session.run("import os; os._exit(3)")


def test_without_checkpoints_a_successor_starts_empty() -> None:
    with plain(checkpoint=False) as session:
        session.run("kept = 1")
        assert session.death is None
        death = session.run("import os; os._exit(3)").death
        assert session.death is death
        assert death is not None
        assert (death.restored, death.checkpointed) == ((), False)
        failure = session.run("kept").failure
        assert failure is not None
        assert failure.name == "NameError"


def test_a_death_inside_a_host_tool_is_noticed_while_the_tool_still_runs(
    gate: Gate, beside: ThreadPoolExecutor
) -> None:
    with plain(tools={"wait": gate}) as session:
        pid = int(session.run("import os; os.getpid()").text)
        running = beside.submit(session.run, "wait()")
        gate.wait_for()
        psutil.Process(pid).kill()
        gate.open()
        death = running.result(30).death
        assert death is not None
        assert death.reason.startswith("it was killed by signal 9")
        assert session.run("wait()").text == "late\n"


def test_set_up_cells_are_run_again_for_a_successor_but_undo_nothing() -> None:
    with plain() as session:
        session.run(Cell("runs = globals().get('runs', 0) + 1\nfile = open(given)", {"given": "/dev/null"}, setup=True))
        session.run("runs = 10")
        death = session.run("import os; os._exit(1)").death
        assert death is not None
        assert session.run("runs, file.name, given").text == "(10, '/dev/null', '/dev/null')\n"


def test_a_tool_that_was_called_before_a_death_is_not_called_again() -> None:
    calls: list[int] = []
    with plain(tools={"count": lambda: calls.append(1)}) as session:
        assert session.run("count()\nimport os; os._exit(1)").death is not None
        assert calls == [1]
        session.run("count()")
        assert calls == [1, 1]


def test_an_interrupt_comes_through_while_calls_pile_up(
    gate: Gate, beside: ThreadPoolExecutor, tmp_path: Path, wait_until: Callable[..., None], patient: None
) -> None:
    file = tmp_path / "waiting"
    code = "import threading\nthreads = [threading.Thread(target=wait) for _ in range(20)]\nfor t in threads: t.start()"
    with plain(tools={"wait": gate}, limits=Limits(calls_in_flight=4)) as session:
        session.run(code)
        gate.wait_for(4)
        running: Any = beside.submit(session.run, f"open({str(file)!r}, 'w').close()\nwait()")
        wait_until(file.exists, "the cell's last sign before it waits")
        session.interrupt()
        outcome = running.result(30)
        assert outcome.failure is not None
        assert outcome.failure.name == "KeyboardInterrupt"
        gate.open()
        assert session.run("for t in threads: t.join()\n'all answered'").text == "all answered\n"


# -- while a death is dealt with ---------------------------------------------------------------------------------------


def test_nobody_waits_for_a_death_that_another_thread_deals_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_bridge.session._RUNNER_SECONDS", 0.01)
    dealing, go_on = threading.Event(), threading.Event()

    def deal() -> str:
        dealing.set()
        assert go_on.wait(60)
        return "dealt with"

    interpreter = KernelInterpreter(confinement="off", on_death=deal)
    with ThreadPoolExecutor(2) as pool:
        try:
            cell = pool.submit(interpreter.execute, "import os; os._exit(1)")
            assert dealing.wait(60)
            connection_file = interpreter.connection_file
            assert connection_file is not None
            assert interpreter.report is not None
            interpreter.interrupt()
            with pytest.raises(CodeInterpreterError, match="already running"):
                pool.submit(interpreter.execute, "1").result(30)
            pool.submit(interpreter.shutdown).result(30)
            assert not cell.done()
        finally:
            go_on.set()
        with pytest.raises(CodeInterpreterError, match="shut down"):
            cell.result(60)
    assert not connection_file.parent.exists()


def test_a_shutdown_gives_up_a_kernel_that_is_still_starting() -> None:
    dying = threading.Event()
    limits = Limits(start_seconds=300, checkpoint_seconds=200)
    interpreter = KernelInterpreter(confinement="off", on_death=dying.set, limits=limits)
    interpreter.execute("import time\nclass Slow:\n    def __reduce__(self): return time.sleep, (100,)\nslow = Slow()")
    with ThreadPoolExecutor(1) as pool:
        cell = pool.submit(interpreter.execute, "import os; os._exit(1)")
        assert dying.wait(60)
        while interpreter.connection_file is not None:
            time.sleep(0.001)
        interpreter.shutdown()
        with pytest.raises(CodeInterpreterError, match=r"shut down|given up"):
            cell.result(60)
