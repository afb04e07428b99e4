"""Attacks by living on: what a kernel starts, and what it makes of itself, so that nobody can end it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from rig import KINDS, Tier
from victim import DEATH, Victim, at_every_tier, each, victim

_SECONDS = 30.0  # for what was killed to be gone

DAEMONS = """
def deafen():
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    _libc.prctl(1, 0, 0, 0, 0)  # not to die with its parent

def daemon(generations, environment):
    "A sleeper that is deaf, leads a session of its own, and whose parents are gone."
    if os.fork():
        return
    for _ in range(generations):
        os.setsid()
        deafen()
        if os.fork():
            os._exit(0)
    os.execve(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)", mark], environment)

def ready(count):
    "Wait until the sleepers are there."
    until = time.time() + 20
    while time.time() < until:
        found = 0
        for name in filter(str.isdigit, os.listdir("/proc")):
            try: found += mark.encode() in read(f"/proc/{name}/cmdline")
            except OSError: pass
        if found >= count: return
        time.sleep(0.01)
"""


@contextlib.contextmanager
def marked() -> Iterator[str]:
    """A mark for processes; none that bears it may be left in the end."""
    mark = f"outliving-{uuid.uuid4().hex}"
    yield mark
    until = time.monotonic() + _SECONDS
    while (left := bearing(mark)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left, f"processes {left} live on"


def bearing(mark: str) -> list[int]:
    """The processes of this machine with a mark on their command line."""
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0"):
                found.append(int(name))
    return found


def start_daemons(one: Victim, mark: str) -> None:
    """Start three of them, and see from outside that they are there."""
    one.tier.run_in_time(
        f"{DAEMONS}\nfor generations in (0, 1, 3): daemon(generations, dict(os.environ) if generations < 3 else {{}})",
        session=one.name,
        mark=mark,
    )
    until = time.monotonic() + _SECONDS
    while len(bearing(mark)) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(bearing(mark)) >= 3, "the daemons did not start"


@at_every_tier
def test_daemons_when_the_session_ends(bounded: Victim) -> None:
    with marked() as mark, victim(bounded.tier, "") as one:
        start_daemons(one, mark)


@at_every_tier
def test_daemons_when_the_kernel_ends(bounded: Victim) -> None:
    with victim(bounded.tier, "") as one:
        with marked() as mark:
            start_daemons(one, mark)
            assert "it exited with status 5" in one.dies("os._exit(5)")
        one.assert_works()


@at_every_tier
def test_a_kernel_that_makes_itself_another_program(bounded: Victim) -> None:
    with victim(bounded.tier, "limits=Limits(cell_seconds=0.5)") as one:
        for kept in (False, True):  # its descriptors, so that no socket closes
            with marked() as mark:
                one.dies(
                    "for name in os.listdir('/proc/self/fd') if kept else ():\n"
                    "    try: os.set_inheritable(int(name), True)\n"
                    "    except OSError: pass\n"
                    "os.execv(sys.executable, [sys.executable, '-S', '-c', 'import time; time.sleep(600)', mark])",
                    mark=mark,
                    kept=kept,
                )
            one.assert_works()


@at_every_tier
def test_a_kernel_that_stops_itself(bounded: Victim) -> None:
    with victim(bounded.tier, "limits=Limits(cell_seconds=0.5)") as one:
        told = one.dies("os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(600)")
        assert "did not react to an interrupt" in told
        one.assert_works()


@at_every_tier
def test_a_kernel_that_blocks_every_signal(bounded: Victim) -> None:
    with victim(bounded.tier, "limits=Limits(cell_seconds=0.5)") as one:
        told = one.dies(
            f"{DAEMONS}\ndeafen()\nthreading.Thread(target=deafen).start()\nwhile True: time.sleep(1)",
        )
        assert "did not react to an interrupt" in told
        one.assert_works()


@at_every_tier
def test_signals_to_all_that_stand_above_it(bounded: Victim) -> None:
    look = "import os; result = [os.getpid(), os.getppid(), guardian_pid(session), *kernel_pids(session)]"
    above = bounded.host(look)
    bounded.run(
        "pids = {os.getppid(), os.getpgid(os.getppid()) if os.getppid() else 1, 1, *above} - {os.getpid(), 0}\n"
        "for pid in pids:\n"
        "    if pid == own: continue\n"
        "    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGKILL, signal.SIGPIPE, "
        "signal.SIGCHLD):\n"
        "        attempt(os.kill, pid, number)\n"
        "        if number != signal.SIGSTOP: attempt(os.kill, pid, signal.SIGCONT)\n",
        above=above[:3] if bounded.tier.letter == "N" else [pid for pid in above if pid not in above[3:4]],
        own=0 if bounded.tier.letter == "N" else above[3],
    )
    bounded.assert_works()
    assert bounded.host(look) == above


@at_every_tier
def test_closing_every_descriptor_that_it_has(bounded: Victim) -> None:
    with victim(bounded.tier, "limits=Limits(cell_seconds=0.5)") as one:
        told = one.dies("os.closerange(0, 4096)\nwhile True: time.sleep(1)")
        # Its libraries may notice, and end it in their own way.
        assert "it was killed" in told or "closed its connection" in told or "it exited" in told, told
        one.assert_works()


@at_every_tier
def test_a_guardian_that_was_stopped(bounded: Victim) -> None:
    with marked() as mark, victim(bounded.tier, "limits=Limits(cell_seconds=0.5)") as one:
        start_daemons(one, mark)
        one.host("import os, signal; os.kill(guardian_pid(session), signal.SIGSTOP)")
        one.assert_works()
        assert DEATH in one.dies("while True: time.sleep(1)")
        one.assert_works()
        one.host("import os, signal; os.kill(guardian_pid(session), signal.SIGSTOP)")


@at_every_tier
def test_a_guardian_that_was_killed(bounded: Victim) -> None:
    with victim(bounded.tier, "") as one:
        with marked() as mark:
            one.run(f"{DAEMONS}\nfor generations in (0, 1, 3): daemon(generations, dict(os.environ))", mark=mark)
            one.run("_libc.prctl(1, 0, 0, 0, 0)")
            one.host("import os, signal; os.kill(guardian_pid(session), signal.SIGKILL)")
            told = one.fate("time.sleep(20)")
            assert DEATH in told, told
        one.assert_works()


def test_a_host_that_is_killed_while_its_kernels_have_daemons(hosts: list[Tier]) -> None:
    def kill(one: Victim) -> None:
        own = Tier(KINDS[one.tier.name])
        try:
            with marked() as mark:
                start_daemons(Victim(own, "shared"), mark)
                folder = own.host("result = directory(sessions['shared'])")
                assert os.path.isdir(folder)
                os.kill(own.facts["host_pid"], signal.SIGKILL)
            until = time.monotonic() + _SECONDS
            while os.path.exists(folder) and time.monotonic() < until:
                time.sleep(0.01)
            assert not os.path.exists(folder), f"{folder} is left"
        finally:
            own.close()
        one.assert_works()

    each([Victim(host, "shared") for host in hosts], kill)


