"""Kernels that lie: messages that were not agreed, replies that are none, and claims that nobody believes."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_bridge import KernelSession, Limits, ProtocolViolation, SessionClosed


def plain(**options: Any) -> KernelSession:
    return KernelSession(**{"confinement": "off", **options})


SEND = "get_ipython().kernel.channel._out.send([{}])\nimport time; time.sleep(60)"
HEADS = "import msgspec\npack = msgspec.msgpack.encode\n"


@pytest.mark.parametrize(
    "frames",
    [
        "b''",
        "b'junk', b''",
        "b'\\xc1' * 10, b'\\xc0'",
        "pack(['call', 1, 'f']), b'', b''",
        "pack(['return', 1]), b'\\xc0'",
        "pack(['raise', 1, 'a', 'b']), b''",
        "pack(['ready', '3']), b''",
        "pack(['call', 1, 'f']), b''",
        "pack(['call', 1, 'f']), pack([1, 2])",
        "pack(['call', 1, 'f']), pack([[1], {2: 3}])",
        "pack(['call', 1, 'f']), b'\\x91' * 100 + b'\\xc0'",
        "pack(['call', 1, 'f']), b'\\x92\\x90\\x80 more'",
        "pack(['call', 1, 'f']), b'\\x92\\x91\\xd4\\x03a\\x80'",
        "pack(['submit', 1]), pack([1])",
        "pack(['submit', 1]), pack(None)",
        "pack(['foreign', 'yes']), b''",
    ],
)
def test_a_message_that_was_not_agreed_ends_the_session_and_reaches_no_tool(frames: str) -> None:
    called: list[Any] = []
    session = plain(tools={"f": lambda *args: called.append(args)})
    with session:
        with pytest.raises(ProtocolViolation):
            session.run(HEADS + SEND.format(frames))
        assert called == []
        with pytest.raises(SessionClosed):
            session.run("1")


FORGE = """
kernel = get_ipython().kernel
GOOD = dict(head="", tail="", omitted=0, result=None, failure=None, submitted=False, taken=True, unkept=dict())
honest = kernel.replies.send
def lie(content, parent, ident):
    content = {}
    return honest(content, parent, ident)
kernel.replies.send = lie
"""


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "dict(content, kernel_bridge=None)",
        "dict(content, kernel_bridge={'head': 1})",
        "dict(content, kernel_bridge=dict(GOOD, head=None))",
        "dict(content, kernel_bridge=dict(GOOD, omitted='many'))",
        "dict(content, kernel_bridge=dict(GOOD, failure={'name': 1}))",
        "dict(content, kernel_bridge=dict(GOOD, taken=None))",
        "dict(content, kernel_bridge=dict(GOOD, result=[1]))",
    ],
)
def test_a_reply_that_is_none_ends_the_session(content: str) -> None:
    with plain() as session, pytest.raises(ProtocolViolation, match="a malformed reply"):
        session.run(FORGE.replace("{}", content))


def test_what_a_kernel_claims_to_have_submitted_is_not_believed() -> None:
    judged: list[Any] = []
    with plain(judge=judged.append, limits=Limits(output_bytes=1000)) as session:
        said = "dict(name='N' * 9000, message='m' * 10**5, traceback='t' * 10**5, compiling=False)"
        claim = f"dict(GOOD, head='h' * 10**5, failure={said}, submitted=True)"
        session.run(FORGE.replace("{}", f"dict(content, kernel_bridge={claim})"))
        outcome = session.run("1")
        assert outcome.submitted is None
        assert judged == []
        assert outcome.failure is not None
        assert len(outcome.failure.name) + len(outcome.failure.message) + len(outcome.failure.traceback) < 5000
        assert len(outcome.text) < 1100


def test_a_forged_call_gets_no_further_than_an_honest_one() -> None:
    called: list[Any] = []
    code = """
from kernel_bridge.wire import Call
channel = get_ipython().kernel.channel
for name in ("unknown", "__class__", "", "known.__globals__", "SUBMIT"):
    try: channel.call(name, (1,), {})
    except NameError as e: print(e)
"""
    with KernelSession({"known": called.append}) as session:
        outcome = session.run(code)
    assert outcome.failure is None
    assert outcome.text.count("there is no tool named") == 5
    assert called == []
