"""Ctrl-C on the main thread of a real process: raised promptly, and at most once a second."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from child_process import forked

from rlmoptimizer.compilation.ctrl_c import PromptCtrlC

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="Windows wakes the main thread by itself")

HEAD = """
import os, signal, sys, threading, time
from rlmoptimizer.compilation import ctrl_c
def say(text): os.write(1, f"{text}\\n".encode())
def other_thread_takes_it():
    # What the system does now and then: the handler in C runs there, and the main thread sleeps on.
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
"""


def lines(body: str, *, presses: int = 0) -> list[str]:
    """What a process says until it ends by itself; pressed as often as that when it has said "ready"."""
    with forked(HEAD + body) as child:
        if presses:
            child.wait_for("ready")
        for _ in range(presses):
            child.send_signal(signal.SIGINT)
        ended = child.ended()
        assert ended.status == 0, ended
    return ended.out.splitlines()


@pytest.mark.smoke
def test_a_press_that_another_thread_takes_is_raised_where_the_main_thread_waits() -> None:
    body = """
with ctrl_c.PromptCtrlC():
    try:
        threading.Timer(0.1, other_thread_takes_it).start()
        threading.Event().wait()
    except KeyboardInterrupt: say("raised")
say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    assert lines(body) == ["raised", "True"]


def test_a_press_while_other_threads_are_being_started_is_raised() -> None:
    body = """
def start_threads():
    while True:
        thread = threading.Thread(target=int); thread.start(); thread.join()
for _ in range(3): threading.Thread(target=start_threads, daemon=True).start()
with ctrl_c.PromptCtrlC():
    try:
        say("ready")
        threading.Event().wait()
    except KeyboardInterrupt: say("raised")
os._exit(0)
"""
    for _ in range(8):
        assert lines(body, presses=1) == ["raised"]


def test_many_presses_at_once_are_one_until_some_time_is_over() -> None:
    body = """
ctrl_c._APART_SECONDS = 4.0
with ctrl_c.PromptCtrlC():
    try:
        try:
            threading.Timer(0.1, other_thread_takes_it).start()
            threading.Event().wait()
        except KeyboardInterrupt:
            for _ in range(20):  # each is handled before the next one comes
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000): pass
            say("held back")
            threading.Event().wait()
    except KeyboardInterrupt:
        say("raised")
"""
    assert lines(body) == ["held back", "raised"]


def test_a_single_press_is_raised_once() -> None:
    body = """
with ctrl_c.PromptCtrlC():
    try:
        say("ready")
        threading.Event().wait()
    except KeyboardInterrupt:
        say(threading.Event().wait(3.0))
"""
    assert lines(body, presses=1) == ["False"]


def test_a_press_while_it_is_being_entered_is_raised_within() -> None:
    body = """
install = signal.signal
def press_last(number, handler):
    install(number, handler)
    if handler is not signal.default_int_handler: os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass
signal.signal = press_last
with ctrl_c.PromptCtrlC():
    try: threading.Event().wait()
    except KeyboardInterrupt: say("raised")
say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    assert lines(body) == ["raised", "True"]


def test_a_press_while_it_is_being_left_is_not_lost() -> None:
    body = """
join = threading.Thread.join
def press_first(*args):
    os.kill(os.getpid(), signal.SIGINT)
    join(*args)
threading.Thread.join = press_first
try:
    with ctrl_c.PromptCtrlC(): pass
except KeyboardInterrupt: say("raised")
say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    assert lines(body) == ["raised", "True"]


@pytest.mark.parametrize("ending", ["pass", "raise ValueError"])
def test_a_press_in_the_first_moment_of_leaving_is_raised_when_all_is_as_it_was(ending: str) -> None:
    body = f"""
def press(frame, event, argument):
    if event == "call" and frame.f_code.co_name == "__exit__":
        sys.settrace(None)
        other_thread_takes_it()  # here it is the main thread itself
        for _ in range(1000): pass
pressed = ctrl_c.PromptCtrlC()
try:
    with pressed:
        sys.settrace(press)
        {ending}
except KeyboardInterrupt: say("raised")
say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
say(signal.set_wakeup_fd(-1))
say(threading.active_count())
"""
    assert lines(body) == ["raised", "True", "-1", "1"]


def test_a_press_that_another_thread_takes_in_the_first_moment_of_leaving_is_not_lost() -> None:
    body = """
def wait(frame, event, argument):
    if event == "call" and frame.f_code.co_name == "__exit__":
        sys.settrace(None)
        threading.Timer(0.1, other_thread_takes_it).start()
        time.sleep(1)  # our own signal ends it
        for _ in range(1000): pass
pressed = ctrl_c.PromptCtrlC()
try:
    with pressed: sys.settrace(wait)
except KeyboardInterrupt: say("raised")
say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    assert lines(body) == ["raised", "True"]


def test_a_press_while_its_thread_is_being_started_is_raised_within() -> None:
    body = """
start = threading.Thread.start
def press_first(thread):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass
    start(thread)
threading.Thread.start = press_first
with ctrl_c.PromptCtrlC():
    try: threading.Event().wait()
    except KeyboardInterrupt: say("raised")
say(threading.active_count())
"""
    assert lines(body) == ["raised", "1"]


def test_where_no_thread_can_be_started_all_is_as_it_was() -> None:
    body = """
def refuse(thread): raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
try:
    with ctrl_c.PromptCtrlC(): say("entered")
except RuntimeError as error: say(error)
say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
say(signal.set_wakeup_fd(-1))
"""
    assert lines(body) == ["can't start new thread", "True", "-1"]


def test_other_signals_reach_who_asked_for_them_before() -> None:
    body = """
import socket
mine, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
signal.signal(signal.SIGUSR1, lambda *_: None)
with ctrl_c.PromptCtrlC():
    os.kill(os.getpid(), signal.SIGUSR1)
    say(list(mine.recv(10)) == [signal.SIGUSR1])
say(signal.set_wakeup_fd(-1) == theirs.fileno())
"""
    assert lines(body) == ["True", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_signal_that_only_a_forked_child_gets_is_no_press() -> None:
    body = """
ready, tell = os.pipe()
with ctrl_c.PromptCtrlC():
    child = os.fork()
    if not child:
        try:
            os.write(tell, b"x")
            while True: time.sleep(60)
        except KeyboardInterrupt: os._exit(3)
    os.read(ready, 1)
    os.kill(child, signal.SIGINT)
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    try: say(threading.Event().wait(1.0))
    except KeyboardInterrupt: say("raised")
"""
    assert lines(body) == ["3", "False"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_that_leaves_the_block_takes_nothing_from_its_parent() -> None:
    body = """
with ctrl_c.PromptCtrlC():
    child = os.fork()
    if child:
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        try:
            threading.Timer(0.1, other_thread_takes_it).start()
            threading.Event().wait()
        except KeyboardInterrupt: say("raised")
if not child: os._exit(5 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 6)
"""
    assert lines(body) == ["5", "raised"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_each_use_leaves_nothing_for_the_forks_to_come() -> None:
    body = """
os.register_at_fork = lambda **_: say("registered")
for _ in range(2):
    with ctrl_c.PromptCtrlC(): say("entered")
"""
    assert lines(body) == ["entered", "entered"]


def test_a_wake_up_descriptor_that_was_closed_meanwhile_is_not_set_again() -> None:
    body = """
import socket
mine, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
with ctrl_c.PromptCtrlC(): theirs.close()
say(signal.set_wakeup_fd(-1))
say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
say(threading.active_count())
"""
    assert lines(body) == ["-1", "True", "1"]


def test_a_handler_of_the_program_itself_stays() -> None:
    def own(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGINT, own)
    threads = set(threading.enumerate())
    try:
        with PromptCtrlC():
            assert signal.getsignal(signal.SIGINT) is own
            assert set(threading.enumerate()) <= threads
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_the_block_sets_stays() -> None:
    def own(number: int, frame: object) -> None: ...

    before = signal.getsignal(signal.SIGINT)
    try:
        with PromptCtrlC():
            signal.signal(signal.SIGINT, own)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_change_nothing() -> None:
    handlers: list[object] = []

    def enter() -> None:
        with PromptCtrlC():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_nothing_is_left_behind() -> None:
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd")) if _has_proc() else 0
    for _ in range(20):
        with PromptCtrlC():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert set(threading.enumerate()) <= threads  # of those of earlier tests some may have ended
    if _has_proc():
        assert len(os.listdir("/proc/self/fd")) <= descriptors


def _has_proc() -> bool:
    return Path("/proc/self/fd").is_dir()
