"""Restoring a checkpoint runs the agent's own code in a new kernel: what it may do then, and what comes of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from living import ENDLESS, add, assert_it_works

from kernel_bridge import Death, KernelSession, Limits, SessionClosed

BOMB = """
class Bomb:
    def __reduce__(self): return exec, (code, {})
bomb, kept = Bomb(), 41
"""

FORGE = """
from IPython import get_ipython
replies = get_ipython().kernel.replies
honest = replies.send
def lie(content, parent, ident):
    replies.send = honest
    content = {}
    return honest(content, parent, ident)
replies.send = lie
"""


def death_with(code: str, **options: Any) -> Death:
    """How a session tells of a death, in which restoring the checkpoint runs this code; it works on."""
    with KernelSession({"add": add}, confinement="off", restarts=ENDLESS, **options) as session:
        assert session.run(f"code = {code!r}{BOMB}").failure is None
        death = session.run("import os; os._exit(9)").death
        assert death is not None
        assert death.reason == "it exited with status 9"
        session.run("kept = 41")
        assert_it_works(session)
        return death


def lost_whole(death: Death, reason: str) -> bool:
    return death.restored == () and death.lost == {"all names": f"restoring them failed: {reason}"}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(3)", "it exited with status 3"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "it was killed by signal 11 (SIGSEGV, segmentation fault)",
        ),
        (
            "import msgspec, time, IPython\nready = msgspec.msgpack.encode(['ready', '3'])\n"
            "IPython.get_ipython().kernel.channel._out.send([ready, b''])\ntime.sleep(60)",
            "the kernel broke the protocol: Ready comes once",
        ),
    ],
)
def test_a_kernel_that_is_lost_while_it_restores_is_replaced_by_an_empty_one(code: str, reason: str) -> None:
    assert lost_whole(death_with(code), reason)


def test_a_restore_that_never_ends_is_ended() -> None:
    code = "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass"
    death = death_with(code, limits=Limits(start_seconds=8, checkpoint_seconds=0.5))
    assert lost_whole(death, "it took longer than 8 s")


def test_a_forged_account_of_the_names_is_not_taken() -> None:
    with KernelSession({"add": add}, confinement="off", restarts=ENDLESS) as session:
        for content in (
            "{}",
            "dict(content, kernel_bridge={'restored': ['a']})",
            "dict(content, kernel_bridge={'restored': [1], 'lost': {}})",
            "dict(content, kernel_bridge={'restored': [], 'lost': {'a': ['b']}})",
            "dict(content, kernel_bridge={'restored': ['x'] * 2**17, 'lost': {}})",
        ):
            assert session.run(f"code = {FORGE.replace('{}', content)!r}{BOMB}").failure is None
            death = session.run("import os; os._exit(9)").death
            assert death is not None
            assert death.restored == ()
            assert set(death.lost) == {"all names"}
            assert "the kernel sent a malformed reply" in death.lost["all names"]
        session.run("kept = 41")
        assert_it_works(session)


def test_what_a_kernel_says_of_its_names_is_text() -> None:
    said = "{'restored': ['a' + chr(27) + '[2J'], 'lost': {'b' + chr(27) + ']0;t' + chr(7): chr(27) + '[31mred'}}"
    death = death_with(FORGE.replace("{}", f"dict(content, kernel_bridge={said})"))
    assert death.restored == ("a",)
    assert death.lost == {"b": "red"}


def test_a_session_that_is_closed_while_a_kernel_restores_ends_at_once() -> None:
    code = "import IPython\nIPython.get_ipython().kernel.channel.call('begun', (), {})\n" + (
        "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass"
    )
    closed: list[None] = []
    session = KernelSession(confinement="off", restarts=ENDLESS)
    session.tools = {"begun": lambda: closed.append(session.close())}
    assert session.run(f"code = {code!r}{BOMB}").failure is None
    with pytest.raises(SessionClosed):
        session.run("import os; os._exit(9)")
    assert closed == [None]


def test_a_restored_name_can_use_the_tools_from_the_first_cell_on(fresh: KernelSession) -> None:
    fresh.run("def more(): return add(kept, 1)")
    assert fresh.run("import os; os._exit(9)").death is not None
    assert fresh.run("more()").text == "42\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_while_a_kernel_restores_is_no_second_kernel(wait_until: Callable[..., None]) -> None:
    def running() -> int:
        found = psutil.Process().children(recursive=True)
        return sum(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in found)

    with KernelSession(confinement="off", restarts=ENDLESS) as session:
        session.start()
        before = running()
        session.run(f"code = 'import os; os.fork()'{BOMB}")
        death = session.run("import os; os._exit(9)").death
        assert death is not None
        assert "bomb" in death.restored
        wait_until(lambda: running() == before, "the end of the fork")
        assert session.run("kept").text == "41\n"
