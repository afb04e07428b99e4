"""Kernels that die, starve or never come up: the host is told the truth, and work goes on."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError, FinalOutput
from living import ENDLESS, add, assert_it_works, cut_short, kernel_pid, kernel_process, settled

from kernel_bridge import (
    CellOutcome,
    Confinement,
    KernelDied,
    KernelInterpreter,
    KernelSession,
    Limits,
    SessionClosed,
    StartupFailed,
)
from kernel_bridge.inside import DAMAGED_STATUS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


# death

def test_a_kernel_that_dies_is_replaced_and_the_truth_is_told(fresh: KernelSession) -> None:
    for code, reason in (
        ("import os; os._exit(3)", r"exited with status 3$"),
        ("import os; os._exit(0)", r"exited with status 0$"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(60)", "SIGTERM"),
        ("import os; os.execv('/bin/sh', ['sh', '-c', 'exit 7'])", "status 7$"),
        ("import os; os.closerange(3, 1000); import time; time.sleep(60)", "SIGABRT|closed its connection"),
        ("import threading, os, time; threading.Thread(target=os._exit, args=(5,)).start(); time.sleep(60)", "5$"),
    ):  # fmt: skip
        outcome = fresh.run(f"print('before'); kept = 0; fresh = 1\n{code}")
        assert outcome.death is not None, code
        assert re.search(reason, outcome.death.reason), (code, outcome.death.reason)
        assert outcome.text == "before\n", code
        assert "kept" in outcome.death.restored, code
        assert "fresh" not in outcome.death.restored, code
        assert_it_works(fresh)


def test_a_kernel_killed_from_outside_in_the_middle_of_a_cell(fresh: KernelSession) -> None:
    entered = threading.Event()
    fresh.tools = {"add": add, "here": entered.set}
    victim = kernel_process(fresh)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fresh.run, "here()\nwhile True: pass")
        assert entered.wait(30)
        victim.kill()
        outcome = running.result(30)
    assert outcome.death is not None
    assert "SIGKILL" in outcome.death.reason
    assert_it_works(fresh)


def test_a_kernel_killed_in_the_middle_of_a_tool_and_the_tools_late_answer(fresh: KernelSession) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow() -> str:
        entered.set()
        assert leave.wait(60)
        return "late"

    fresh.tools = {"add": add, "slow": slow}
    victim = kernel_process(fresh)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fresh.run, "slow()")
        assert entered.wait(30)
        victim.kill()
        outcome = running.result(30)  # although the tool has not returned
        assert outcome.death is not None
        leave.set()
    for _ in range(20):
        assert fresh.run("print(add(1, 2))").text == "3\n"  # never "late"
    assert_it_works(fresh)


def test_a_kernel_that_was_stopped_is_killed_when_its_time_is_over() -> None:
    with KernelSession({"add": add}, limits=Limits(cell_seconds=1)) as session:
        settled(session, "kept = 41")
        outcome = cut_short(session, "print('begun'); import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
        assert outcome.death is not None
        assert "1 s of its own time" in outcome.death.reason
        assert_it_works(session)


@pytest.mark.parametrize(
    ("end", "reason"), [("os._exit(5)", "it exited with status 5"), ("os.kill(os.getpid(), 9)", "signal 9 (SIGKILL")]
)
def test_a_guardian_that_is_late_to_tell_how_its_kernel_ended_is_believed_all_the_same(end: str, reason: str) -> None:
    with KernelSession({"add": add}, confinement="off") as session:
        session.run("kept = 41")
        outcome = session.run(f"import os, signal; os.kill(os.getppid(), signal.SIGSTOP); {end}")
        assert outcome.death is not None
        assert reason in outcome.death.reason
        assert_it_works(session)


def test_a_guardian_that_is_late_to_tell_how_a_kernel_ended_that_was_restoring_its_names_is_believed_too() -> None:
    with KernelSession({"add": add}, confinement="off") as session:
        session.run(
            "class Deadly:\n"
            "    def __reduce__(self):\n"
            "        return exec, ('import os, signal; os.kill(os.getppid(), signal.SIGSTOP); os._exit(7)',)\n"
            "deadly = Deadly()"
        )
        outcome = session.run("import os; os._exit(1)")
        assert outcome.death is not None
        assert outcome.death.lost["all names"].endswith("restoring them failed: it exited with status 7")
        assert session.run("print(add(1, 2))").text == "3\n"


def test_a_kernel_that_kills_its_guardian_takes_its_children_with_it(wait_until: Callable[..., None]) -> None:
    with KernelSession({"add": add}, confinement="off") as session:
        session.run("kept = 41")
        outcome = session.run(
            "import os, signal, subprocess\n"
            "print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, flush=True)\n"
            "os.kill(os.getppid(), signal.SIGKILL)\nimport time; time.sleep(60)"
        )
        assert outcome.death is not None
        wait_until(lambda: not psutil.pid_exists(int(outcome.text)), "the kernel's child is gone")
        assert_it_works(session)


def test_a_submission_that_was_accepted_outlives_the_death_of_its_kernel() -> None:
    with KernelInterpreter(restarts=0, output_fields=[{"name": "answer"}]) as interpreter:
        result = interpreter.execute("try:\n    SUBMIT(answer=42)\nexcept BaseException:\n    import os; os._exit(1)")
        assert isinstance(result, FinalOutput)
        assert result.output == {"answer": 42}
        with pytest.raises(CodeInterpreterError):
            interpreter.execute("1")


def test_an_obituary_says_what_is_lost_and_what_is_not() -> None:
    with KernelInterpreter({"add": add}) as interpreter:
        interpreter.execute("kept = 41; torn = (i for i in [1])")
        with pytest.raises(CodeExecutionError) as told:
            interpreter.execute("print('so far'); import os; os._exit(9)")
        text = str(told.value)
        assert text.startswith("so far\n")
        for part in ("status 9", "Restored", "kept", "torn (TypeError: cannot pickle", "not run again", "stands"):
            assert part in text
        assert interpreter.execute("print(add(kept, 1))") == "42"


def test_three_deaths_in_a_row_are_the_end_but_a_good_cell_between_counts_anew() -> None:
    die = "import os; os._exit(1)"
    with KernelSession(restarts=3) as session:
        for _ in range(2):
            assert session.run(die).death is not None
        assert session.run("1").death is None
        for _ in range(2):
            assert session.run(die).death is not None
        with pytest.raises(KernelDied, match="third time in a row"):
            session.run(die)
        with pytest.raises(SessionClosed):
            session.run("1")
        assert session.connection_file is None


# code that does not end

QUICK = Limits(cell_seconds=0.4, checkpoint_seconds=2)


@pytest.fixture(scope="module")
def quick_session() -> Iterator[KernelSession]:
    with KernelSession({"add": add}, limits=QUICK, restarts=ENDLESS) as session:
        settled(session, "kept = 41")
        yield session


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
        "x = pow(7, 10 ** 9)",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\nwhile True: pass",
        "import asyncio; await asyncio.sleep(1000)",
        "import asyncio\nawait asyncio.sleep(0)\nwhile True: pass",
        "import asyncio\nasync def f():\n    while True: pass\nt = asyncio.create_task(f())\nawait asyncio.sleep(1000)",
        "import threading; e = threading.Event(); e.wait()",
        "import subprocess; subprocess.run(['sleep', '1000'])",
        "class E:\n    def __repr__(self):\n        while True: pass\nE()",
    ],
)
def test_endless_code_is_interrupted_with_its_state_kept(
    quick_session: KernelSession, code: str, patient: None
) -> None:
    settled(quick_session, "seen = 0")
    before = kernel_pid(quick_session)
    outcome = cut_short(quick_session, f"seen = 1\nprint('begun')\n{code}")
    assert outcome.death is None
    assert outcome.timed_out
    assert outcome.failure is not None
    assert outcome.failure.name == "KeyboardInterrupt"
    assert settled(quick_session, "seen").text == "1\n"
    assert kernel_pid(quick_session) == before
    assert_it_works(quick_session)


def test_code_that_takes_no_interrupt_is_killed() -> None:
    with KernelSession({"add": add}, limits=QUICK) as session:
        settled(session, "kept = 41")
        for code in (
            "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('begun')\nwhile True: pass",
            "import time\nbegun = False\nwhile True:\n    try:\n        if not begun: print('begun'); begun = True\n"
            "        time.sleep(0.01)\n    except BaseException: pass",
        ):
            outcome = cut_short(session, code)
            assert outcome.death is not None, code
            assert "longer than 0.4 s" in outcome.death.reason
            assert_it_works(session)


def test_threads_that_never_end_disturb_no_later_cell(fresh: KernelSession) -> None:
    outcome = fresh.run(
        "import threading, time\n"
        "def spin():\n    while True: pass\n"
        "for target in (spin, lambda: time.sleep(1e6)):\n    threading.Thread(target=target).start()"
    )
    assert outcome.failure is None
    assert_it_works(fresh)


# memory and processes

SMALL = Confinement(memory_bytes=400 * 2**20, processes=40)


@pytest.fixture
def small_session() -> Iterator[KernelSession]:
    with KernelSession({"add": add}, confinement=SMALL) as session:
        session.run("kept = 41")
        yield session


def assert_out_of_memory(outcome: CellOutcome) -> None:
    """A MemoryError; or the kernel's end.

    A library of its own may have been the first to find no memory, and have ended the process in whatever way; or the
    watchdog looked at the moment when all was taken, and what the kernel has mapped besides was too much.
    """
    if outcome.death is None:
        assert outcome.failure is not None
        assert outcome.failure.name == "MemoryError"
    else:
        by_others = r"SIG(ABRT|SEGV|BUS|ILL|TRAP)|together used [\d.]+ MiB of memory; 400"
        by_itself = rf"ended itself \(.*MemoryError|status {DAMAGED_STATUS}"
        ways = f"{by_others}|{by_itself}"
        assert re.search(ways, outcome.death.reason), outcome.death
        assert "kept" in outcome.death.restored


@pytest.mark.parametrize("code", ["bomb = bytearray(10 ** 11)", "bomb = 1 << 10 ** 12"])
def test_more_memory_at_once_than_there_may_be_is_a_memory_error(small_session: KernelSession, code: str) -> None:
    before = kernel_pid(small_session)
    outcome = small_session.run(code)
    assert outcome.death is None
    assert_out_of_memory(outcome)
    assert kernel_pid(small_session) == before
    assert_it_works(small_session)


@pytest.mark.parametrize(
    "code",
    [
        "bomb = []\nwhile True: bomb.append(bytearray(10 ** 6))",
        "bomb = []\nwhile True: bomb.append([0] * 100)",
        "bomb = 'a'\nwhile True: bomb += bomb",
        "bomb = {}\nwhile True: bomb[len(bomb)] = str(len(bomb))",
    ],
)
def test_a_memory_bomb_stays_in_its_bounds_and_the_session_goes_on(small_session: KernelSession, code: str) -> None:
    assert_out_of_memory(small_session.run(code))
    small_session.run("bomb = None")
    assert_it_works(small_session)


def test_a_kernel_full_to_the_brim_goes_on_or_is_replaced(small_session: KernelSession) -> None:
    full = "{0} = []\nwhile True: {0}.append([0] * 100)"
    assert_it_works(small_session)  # what it imports must be there: a library in C may find no room later
    for name in ("a", "b"):
        assert_out_of_memory(small_session.run(full.format(name)))
    small_session.run("a = b = None")
    assert_it_works(small_session)


def test_a_small_fork_bomb_ends_at_its_bound(wait_until: Callable[..., None]) -> None:
    mark = f"61{os.getpid()}"
    with KernelSession({"add": add}, confinement=SMALL) as session:
        session.run("kept = 41")
        outcome = session.run(  # and stays, because the watchdog looks only now and then
            f"import subprocess, time\nps = []\nfor _ in range(300): ps.append(subprocess.Popen(['sleep', '{mark}']))\n"
            "time.sleep(60)"
        )
        if outcome.death is None:  # where the limit counts this kernel's processes alone
            assert outcome.failure is not None
            assert outcome.failure.name == "BlockingIOError"
            session.run("for p in ps: p.kill(); _ = p.wait()\ndel ps")
        else:
            assert "40 are allowed" in outcome.death.reason
        wait_until(lambda: not sleepers(mark), "all of them are gone")
        assert_it_works(session)


def sleepers(mark: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", mark]]


# kernels that do not come up

@pytest.fixture
def python(tmp_path: Path) -> Callable[[str], str]:
    """Makes an interpreter of a shell script."""

    def make(script: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 3", "status 3"),
        ("echo no such luck >&2; exit 1", "no such luck"),
        ("kill -SEGV $$", "SIGSEGV"),
        ("echo garbage; echo 'exit 5'; echo 'pid 1'; exit 4", "did not start"),
        ("exec sleep 1000", "not ready within 0.7 s"),
        ("yes >&2", "not ready within 0.7 s"),
        ("exit 0", "did not start"),
    ],
)
def test_an_interpreter_that_becomes_no_kernel_is_named_with_what_it_did(
    python: Callable[[str], str], script: str, says: str
) -> None:
    limits = Limits(start_seconds=0.7) if "0.7" in says else Limits()
    session = KernelSession(python=python(script), confinement="off", limits=limits)
    with pytest.raises(StartupFailed, match=says):
        session.run("1")
    session.close()


@pytest.mark.parametrize("path", ["/no/such/python", "/", __file__])
def test_an_interpreter_that_cannot_be_run_is_refused(path: str) -> None:
    with pytest.raises(StartupFailed):
        KernelSession(python=path, confinement="off").start()
    interpreter = KernelInterpreter(python=path)
    with pytest.raises(CodeInterpreterError):
        interpreter.execute("1")
    interpreter.shutdown()
