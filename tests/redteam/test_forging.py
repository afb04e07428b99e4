"""Attacks by lying: forged messages, forged replies, values that are not what they seem, and a kernel that mutilates
itself. At most it costs its own session; a session beside it in the same host never notices.
"""

from __future__ import annotations

import time

import pytest
from rig import CellError, Tier
from victim import Victim, at_every_tier, victim

RAW = """
import msgspec, pickle, zmq
pack = msgspec.msgpack.encode
kernel = get_ipython().kernel
calls, answers = kernel.channel._out, kernel.channel._in
def send(*frames):
    calls.send(frames)
    while not calls.flush(): zmq.zmq_poll([(calls.fd, zmq.POLLOUT)], 1000)
"""

CALL = "send(pack(['call', 1, 'echo']), {})"
_VIOLATIONS = {
    "a Return from the wrong side": "send(pack(['return', 1]), pack('forged'))",
    "a pickle": "p = pickle.dumps(print)\n" + CALL.format("b'\\x92\\x91\\xc7' + bytes([len(p), 3]) + p + b'\\x80'"),
    "nothing but depth": CALL.format("b'\\x92\\x91' + b'\\x91' * 10**5 + b'\\xc0\\x80'"),
    "one list too deep": CALL.format("b'\\x92\\x91' + b'\\x91' * 64 + b'\\xc0\\x80'"),
    "more than a frame may have": CALL.format("b'\\x92\\x91\\xc6\\x00\\x90\\x00\\x00' + bytes(9 * 2**20) + b'\\x80'"),
    "more parts than a value may have": CALL.format("b'\\x92\\xdd\\x00\\x20\\x00\\x00' + b'\\xe0' * 2**21 + b'\\x80'"),
    "text that is none": CALL.format("b'\\x92\\x91\\xa2\\xff\\xfe\\x80'"),
    "frames without number": "send(*[b''] * 1000)",
    "a name without end": "send(pack(['call', 1, 'x' * 10**6]), pack([[], {}]))",
    "a head of many names": "send(pack(['ready', '3', ['n'] * 10**6, {}]), b'')",
}


def _peak(tier: Tier) -> int:
    """The most memory that the host has had so far, in bytes."""
    found = tier.host("result = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]")
    return int(found[0].split()[1]) * 1024


@at_every_tier
def test_messages_that_were_not_agreed(bounded: Victim) -> None:
    before = bounded.tier.host("result = len(calls)")
    memory = _peak(bounded.tier)
    for kind, code in _VIOLATIONS.items():
        with victim(bounded.tier, "limits=Limits(frame_bytes=4 * 2**20), checkpoint=False") as one:
            told = one.ends(f"{RAW}\n{code}\ntime.sleep(100)")
            assert "broke the protocol" in told, (kind, told)
    assert bounded.tier.host("result = len(calls)") == before
    assert _peak(bounded.tier) - memory < 60 * 2**20


@at_every_tier
def test_ids_of_another_session(bounded: Victim) -> None:
    tier = bounded.tier
    with victim(tier, "") as one:
        honest = tier.begin("run", name="shared", code="print(all(echo(n) == n for n in range(300)))")
        one.run(
            f"{RAW}\nids = [*range(300), -1, -2**63, 2**64 - 1]\n"
            "for id in ids: send(pack(['call', id, 'echo']), pack([['forged'], {}]))\n"
            "print(echo('mine'))"
        )
        assert tier.take(honest)["text"] == "True"  # and whom the other has fooled is itself


@at_every_tier
def test_calls_and_submissions_played_again(bounded: Victim) -> None:
    tier = bounded.tier
    with victim(tier, "") as one:
        mark = f"again-{tier.name}"
        one.run(f"{RAW}\nfor _ in range(20): send(pack(['call', 5, 'echo']), pack([[mark], {{}}]))\necho(0)", mark=mark)
        assert tier.host("result = calls.count(mark)", mark=mark) <= 20  # each is a call, as an honest one is
        cell = (
            "for id, value in ((7, 'the first'), (8, 'the second')):\n"
            "    send(pack(['submit', id]), pack({'output': value}))\n"
            "    while answers.receive() is None:  # else the host has both at once, and may take either\n"
            "        zmq.zmq_poll([(answers.fd, zmq.POLLIN)], 1000)\n"
            "try: SUBMIT('the third')\n"
            "except RuntimeError as error: print(error)"
        )
        assert tier.ask("run", name=one.name, code=cell)["submitted"] == {"output": "the first"}
        one.assert_works()  # and the next cell has submitted nothing


@at_every_tier
def test_output_and_replies_that_the_cell_makes_up(bounded: Victim) -> None:
    with victim(bounded.tier, "") as one:
        text = one.run(
            f"{RAW}\n"
            "parent = kernel.get_parent()\n"
            "for kind, content in (('stream', {'name': 'stdout', 'text': 'forged'}), "
            "('status', {'execution_state': 'idle'}),\n"
            "                      ('error', {'ename': 'forged', 'evalue': '', 'traceback': []}),\n"
            "                      ('execute_input', {'code': 'forged', 'execution_count': 1})):\n"
            "    kernel.session.send(kernel.iopub_socket, kind, content, parent)\n"
            "print('true')"
        )
        assert text == "true"
        one.run(
            "honest = kernel.replies.send\n"
            "def twice(content, parent, ident):\n"
            "    honest(content, parent, ident)\n"
            "    honest(content, parent, ident)\n"
            "kernel.replies.send = twice"
        )
        assert [one.run(f"print({n})") for n in range(5)] == list("01234")
        one.assert_works()


_REPLIES = {
    "no number": b'{"kernel_bridge": NaN}',
    "a key twice": b'{"kernel_bridge": 1, "kernel_bridge": {"head": 2}}',
    "half a character": b'{"kernel_bridge": {"head": "\\ud800", "tail": 1}}',
    "depth": b'{"kernel_bridge": ' + b"[" * 10**5,
}


@at_every_tier
def test_replies_that_are_none(bounded: Victim) -> None:
    for kind, reply in _REPLIES.items():
        with victim(bounded.tier, "checkpoint=False") as one:
            told = _reply_instead(one, reply)
            assert "a malformed reply" in told, (kind, told)


def _reply_instead(one: Victim, reply: bytes) -> str:
    """Let a kernel answer with these bytes for a content; what the session says."""
    return one.ends(
        f"{RAW}\nreply = bytes(reply)\nhonest = kernel.replies.serialize\n"
        "def lie(content, parent): return [*honest(content, parent)[:-1], reply]\n"
        "kernel.replies.serialize = lie",
        reply=list(reply),
    )


@at_every_tier
def test_a_reply_larger_than_any_cell_needs(bounded: Victim) -> None:
    options = "checkpoint=False, limits=Limits(output_bytes=10_000, frame_bytes=2**20)"
    memory = _peak(bounded.tier)
    with victim(bounded.tier, options) as one:
        told = one.ends(
            f"{RAW}\nhonest = kernel.replies.serialize\n"
            "def swell(content, parent): return [*honest(content, parent)[:-1], bytes(100 * 2**20)]\n"
            "kernel.replies.serialize = swell",
        )
        assert "broke the protocol: a message of more than" in told
    assert _peak(bounded.tier) - memory < 60 * 2**20


@at_every_tier
def test_identities_of_others(bounded: Victim) -> None:
    with victim(bounded.tier, "") as one:
        one.run(
            f"{RAW}\nhonest, sent = kernel.replies.send, []\n"
            "bridge = dict(head='forged', tail='', omitted=0, result=None, failure=None, submitted=True, taken=True)\n"
            "def pose(content, parent, ident):\n"
            "    for id in ('', 'of-another', 'x' * 10**5, parent['header']['msg_id'][:-1]):\n"
            "        header = {**parent['header'], 'msg_id': id, 'username': 'host', 'session': id}\n"
            "        honest({'kernel_bridge': bridge}, {**parent, 'header': header}, ident)\n"
            "    for who in (b'host', b'\\0' * 255, b'x'):\n"
            "        honest({'kernel_bridge': bridge}, parent, [who])\n"
            "    sent.append(content)\n"
            "    honest(content, parent, ident)\n"
            "kernel.replies.send = pose"
        )
        assert [one.run(f"print({n})") for n in range(3)] == list("012")
        assert int(one.run("print(len(sent))")) >= 3
        one.assert_works()


@at_every_tier
def test_replies_to_nobody_without_end(bounded: Victim) -> None:
    with victim(bounded.tier, "limits=Limits(cell_seconds=60)") as one:
        told = one.ends(
            f"{RAW}\nhonest = kernel.replies.serialize\n"
            "def flood(content, parent, ident):\n"
            "    header = {**parent['header'], 'msg_id': 'of-another'}\n"
            "    frames = [*ident, *honest({}, {**parent, 'header': header})]\n"
            "    while True: kernel.shell_stream.socket.send_multipart(frames)\n"
            "kernel.replies.send = flood"
        )
        assert "it sent more than 8 replies that nobody asked for" in told


@at_every_tier
def test_more_calls_than_may_be_in_flight(bounded: Victim) -> None:
    tier = bounded.tier
    tier.host("crowd.update(most=0)")
    memory = _peak(tier)
    for heeds_answers in (True, False):
        with victim(tier, "") as one:
            sent = one.run(
                f"{RAW}\nsent, body, until = 0, pack([['x' * 50_000], {{}}]), time.time() + 1\n"
                "while time.time() < until or sent <= 64:\n"
                "    while heeds_answers and answers.receive() is not None: pass\n"
                "    if calls.flush():\n"
                "        calls.send([pack(['call', 10**6 + sent, 'join_the_crowd']), body])\n"
                "        sent += 1\n"
                "    else: time.sleep(0.001)\n"
                "print(sent)",
                heeds_answers=heeds_answers,
            )
            assert int(sent) > 64
            if heeds_answers:
                one.assert_works()
    assert tier.host("result = crowd['most']") <= 64
    assert _peak(tier) - memory < 60 * 2**20


@at_every_tier
def test_values_that_are_larger_in_memory_than_on_the_wire(bounded: Victim) -> None:
    tier = bounded.tier
    memory = _peak(tier)
    tier.host("crowd.update(most=0)")
    with victim(tier, "limits=Limits(frame_bytes=32 * 2**20)") as one:
        one.run(
            f"{RAW}\ncount = 900_000\n"
            "body = b'\\x92\\x91\\xdd' + count.to_bytes(4, 'big') + b'\\xe0' * count + b'\\x80'\n"
            "for number in range(10): send(pack(['call', 10**6 + number, tools[number > 2]]), body)\n"
            "echo(0)",
            tools=["wait_for_company", "join_the_crowd"],
        )
        one.assert_works()
    assert tier.host("result = crowd['most']") == 1  # so many parts as two of them have may not be held at once
    assert _peak(tier) - memory < 200 * 2**20  # all at once they would take 360 MB


# -- what tools are called with ----------------------------------------------------------------------------------------


@at_every_tier
def test_arguments_that_mean_something_elsewhere(bounded: Victim) -> None:
    text = bounded.run(r"""
values = ["../../../etc/passwd", "/proc/self/environ", "~/.ssh/id_ed25519", "file:///etc/passwd", "%s%n%x" * 50,
          "{0.__class__.__mro__}", "{environ}", "${HOME}", "$(id)", "`id`", "; rm -rf .", "| cat",
          "(a+)+$" + "a" * 5000, "'; DROP TABLE runs; --", "\" OR 1=1 --", "\x00", "\x1b]0;title\x07",
          "\r\n\r\n", "\ud800", "\u202e", "<script>", "[bold]", "__import__('os')",
          10**4000, -2**4000, 2**63, float("inf"), b"\x80\x04.", "x" * 10**6,
          {"__class__": "x", "": None, "a.b[0]": [{}]}, [[[[]]]]]
wrong = [repr(value)[:50] for value in values if echo(value) != value]
nan = echo(float("nan"))
told = []
for value in values:
    if isinstance(value, str):
        try: fail(value)
        except ValueError as error: told.append(str(error).rstrip("\n")[:1000] == value.rstrip("\n")[:1000])
print(wrong, nan != nan, all(told[:10]))
""")
    assert text == "[] True True", text


@at_every_tier
def test_names_of_tools_that_are_none(bounded: Victim) -> None:
    with pytest.raises(CellError, match="there is no tool named '__class__'") as caught:
        bounded.run(f"{RAW}\nkernel.channel.call('__class__', (), {{}})")
    assert caught.value.kind == "CodeExecutionError"
    for name in ("'{0.__class__}'", "'%n' * 10**6", "''", "'echo\\x00'", "'\\ud800'", "'os.system'", "'SUBMIT'"):
        told = bounded.fate(f"kernel = get_ipython().kernel\nkernel.channel.call({name}, (), {{}})")
        assert "there is no tool named" in told, (name, told[:500])
        assert len(told) < 1_000_000
        bounded.tier.assert_secret(told)


@at_every_tier
def test_a_key_that_comes_twice(bounded: Victim) -> None:
    bounded.run(
        f"{RAW}\nsend(pack(['call', 10**6, 'echo']), b'\\x92\\x90\\x82\\xa5value\\x01\\xa5value\\x02')\necho(0)"
    )


# -- a kernel that mutilates itself ------------------------------------------------------------------------------------


@at_every_tier
def test_closing_its_own_sockets(bounded: Victim) -> None:
    with victim(bounded.tier, "restarts=10, limits=Limits(cell_seconds=0.5)") as one:
        one.fate(f"{RAW}\ncalls.close()\nanswers.close()\necho(1)")
        until = time.monotonic() + 30  # the host may notice when some more cells have answered
        while one.fate("print(echo(6 * 7))") != "42" and time.monotonic() < until:
            pass
        one.assert_works()
        one.dies(f"{RAW}\nkernel.shell_stream.socket.context.destroy(0)\ntime.sleep(60)")
        one.assert_works()


@at_every_tier
def test_replacing_all_that_serves_it(bounded: Victim) -> None:
    sabotage = """
import types
for name in [name for name in sys.modules if name.startswith(tuple(modules))]:
    for key, value in list(vars(sys.modules[name]).items()):
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            setattr(sys.modules[name], key, lambda *_, **__: "forged")
        elif isinstance(value, type) and value.__module__.startswith(tuple(modules)):
            for method, function in list(vars(value).items()):
                if isinstance(function, types.FunctionType):
                    try: setattr(value, method, lambda *_, **__: "forged")
                    except (TypeError, AttributeError): pass
"""
    for modules in (("ipykernel", "jupyter_client", "IPython"), ("kernel_bridge", "zmq")):
        with victim(bounded.tier, "restarts=10, limits=Limits(cell_seconds=0.5)") as one:
            for code in (sabotage, "print('whatever comes of it')", "echo(1)"):
                try:
                    one.fate(code, modules=list(modules))
                except CellError as error:
                    if error.kind != "CodeInterpreterError":
                        raise
    bounded.assert_works()
