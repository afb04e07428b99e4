"""Attacks on the network and on sockets of the host: nobody can be reached, nobody can be waited for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from rig import Tier


@pytest.fixture
def nobody_came(tier: Tier) -> Any:
    """Fails when, after the test, a listener of the host has been reached."""
    before = tier.host("result = dict(listeners.taken)")
    yield
    assert tier.host("result = dict(listeners.taken)") == before


pytestmark = pytest.mark.usefixtures("nobody_came")


def test_connecting_by_tcp(tier: Tier) -> None:
    found = tier.look(
        "for kind, family in (('tcp4', socket.AF_INET), ('tcp6', socket.AF_INET6)):\n"
        "    if kind in addresses:\n"
        "        found[kind] = attempt(lambda: socket.socket(family).connect(tuple(addresses[kind])))\n"
        "        found[kind + ' helper'] = attempt(socket.create_connection, tuple(addresses[kind]), 2)\n"
        "found['http'] = attempt(lambda: __import__('urllib.request').request.urlopen('http://%s:%s' % "
        "tuple(addresses['tcp4'])))\n"
        "found['outside'] = attempt(socket.create_connection, ('192.0.2.1', 80), 1)\n"
        "found['child'] = attempt(lambda: subprocess.run([sys.executable, '-c', 'import socket;'\n"
        "    'socket.create_connection((\"%s\", %s))' % tuple(addresses['tcp4'])], check=True, stderr=-3))",
        addresses=tier.facts["listeners"],
    )
    assert "done" not in json.dumps(found)
    assert found["tcp4"] == "EAFNOSUPPORT"


def test_listening_on_tcp(tier: Tier) -> None:
    found = tier.look(
        "def listen(family, address):\n"
        "    server = socket.socket(family)\n"
        "    server.bind(address)\n"
        "    server.listen()\n"
        "found = {'4': attempt(listen, socket.AF_INET, ('127.0.0.1', 0)), '6': attempt(listen, socket.AF_INET6, "
        "('::1', 0)),\n"
        "         'all': attempt(listen, socket.AF_INET, ('', 0)),\n"
        "         'server': attempt(__import__('http.server').server.HTTPServer, ('127.0.0.1', 0), None)}"
    )
    assert "done" not in json.dumps(found)


def test_sending_by_udp(tier: Tier) -> None:
    found = tier.look(
        "for kind, family in (('udp4', socket.AF_INET), ('udp6', socket.AF_INET6)):\n"
        "    if kind in addresses:\n"
        "        found[kind] = attempt(lambda: socket.socket(family, socket.SOCK_DGRAM).sendto(b'x', "
        "tuple(addresses[kind])))\n"
        "found['broadcast'] = attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', "
        "('<broadcast>', 9)))",
        addresses=tier.facts["listeners"],
    )
    assert "done" not in json.dumps(found)


def test_asking_dns(tier: Tier) -> None:
    found = tier.look(
        "found = {name: attempt(socket.getaddrinfo, name, 80) for name in ('example.com', 'redteam.invalid')}\n"
        "found['reverse'] = attempt(socket.gethostbyaddr, '192.0.2.1')\n"
        "found['resolver'] = attempt(read, '/etc/resolv.conf')\n"
        "found['getent'] = attempt(lambda: subprocess.run(['getent', 'hosts', 'example.com'], check=True))"
    )
    assert "done" not in json.dumps(found)


def test_every_other_family_of_sockets(tier: Tier) -> None:
    found = tier.look(
        "kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, 10]\n"
        "for family in range(64):\n"
        "    if family == socket.AF_UNIX: continue\n"
        "    for kind in kinds:\n"
        "        for protocol in (0, 1, 3, 6, 17, 255, 768):\n"
        "            made = syscall(number, family, kind, protocol)\n"
        "            if isinstance(made, int):\n"
        "                found[f'{family} {kind} {protocol}'] = made; os.close(made)\n",
        number=tier.number("socket"),
    )
    assert found == {}  # netlink, packet, raw, vsock, bluetooth, crypto, XDP among them


def test_families_hidden_in_high_bits(tier: Tier) -> None:
    found = tier.look(
        "for family in (2, 16, 40):\n"
        "    for high in (1 << 32, 1 << 63):\n"
        "        found[f'{family} {high}'] = syscall(number, (family | high) - (1 << 64 if high >> 63 else 0), 1, 0)\n"
        "found['unix and more'] = syscall(number, 2 | 1 << 16, 1, 0)",
        number=tier.number("socket"),
    )
    assert all(isinstance(said, str) for said in found.values()), found


def test_abstract_unix_sockets_of_the_host(tier: Tier) -> None:
    found = tier.look(
        "found['stream'] = attempt(lambda: socket.socket(socket.AF_UNIX).connect(addresses['abstract']))\n"
        "found['bytes'] = attempt(lambda: socket.socket(socket.AF_UNIX).connect(addresses['abstract'].encode()))\n"
        "found['datagram'] = attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(\n"
        "    b'x', addresses['abstract_dgram']))",
        addresses=tier.facts["listeners"],
    )
    assert "done" not in json.dumps(found)


REACH = """
def reach(path):
    "Every way to a unix socket that has a path."
    def link():
        if not os.path.lexists("to_the_socket"):
            os.symlink(path, "to_the_socket")
        return "to_the_socket"
    places = {"path": path, "root": "/proc/self/root" + path, "dots": os.path.relpath(path), "link": link()}
    for name, place in places.items():
        for kind in ("SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"):
            def connect():
                with socket.socket(socket.AF_UNIX, getattr(socket, kind)) as mine:
                    mine.connect(place)
                    mine.send(b"x")
            def send():
                with socket.socket(socket.AF_UNIX, getattr(socket, kind)) as mine:
                    mine.sendto(b"x", place)
            def pair(message):
                ours, theirs = socket.socketpair(socket.AF_UNIX, getattr(socket, kind))
                with ours, theirs:
                    if message:
                        ours.sendmsg([b"x"], [], 0, place)
                    else:
                        ours.sendto(b"x", place)
                    theirs.setblocking(False)
                    if theirs.recv(1):  # it ignored the address
                        raise OSError(errno.EISCONN, "to its own other end")
            def again():
                ours, theirs = socket.socketpair(socket.AF_UNIX, getattr(socket, kind))
                with ours, theirs:
                    ours.connect(place)
            yield f"{name} {kind} connect", attempt(connect)
            yield f"{name} {kind} sendto", attempt(send)
            yield f"{name} {kind} pair sendto", attempt(pair, False)
            yield f"{name} {kind} pair sendmsg", attempt(pair, True)
            yield f"{name} {kind} pair connect", attempt(again)
"""


def test_unix_sockets_of_the_host_by_their_path(tier: Tier) -> None:
    found = tier.look(
        f"{REACH}\nfor kind in ('unix', 'unix_dgram'): found.update(reach(addresses[kind]))",
        addresses=tier.facts["listeners"],
    )
    assert [way for way, said in found.items() if said.startswith("done")] == []


def test_handing_a_descriptor_to_the_host(tier: Tier) -> None:
    found = tier.look(
        "def hand(kind, address):\n"
        "    with socket.socket(socket.AF_UNIX, kind) as mine, open('handed', 'wb') as file:\n"
        "        if kind == socket.SOCK_STREAM: mine.connect(address)\n"
        "        return mine.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('i', "
        "file.fileno()))], 0,\n"
        "                            *(() if kind == socket.SOCK_STREAM else (address,)))\n"
        "for name in ('unix', 'abstract'): found[name] = attempt(hand, socket.SOCK_STREAM, addresses[name])\n"
        "for name in ('unix_dgram', 'abstract_dgram'): found[name] = attempt(hand, socket.SOCK_DGRAM, addresses[name])",
        addresses=tier.facts["listeners"],
    )
    assert "done" not in json.dumps(found)


def test_sockets_of_another_session(tier: Tier) -> None:
    with tier.session(name="other") as other:
        sockets = tier.host(
            "folders = [directory(sessions['other']) + name for name in ('/k1', '/h1')]\n"
            "result = [f'{folder}/{name}' for folder in folders for name in os.listdir(folder)]"
        )
        assert any(path.endswith("/c") for path in sockets)
        found = tier.look(f"{REACH}\nfor path in sockets: found.update(reach(path))", sockets=sockets)
        assert [way for way, said in found.items() if said.startswith("done")] == []
        assert tier.works(other)


def test_a_client_of_zmq_on_the_host(tier: Tier) -> None:
    url = tier.host(
        "import zmq\n"
        "context = zmq.Context(); facts['server'] = server = context.socket(zmq.ROUTER)\n"
        "port = server.bind_to_random_port('tcp://127.0.0.1'); path = facts['base'] + '/tmp/zmq.sock'\n"
        "server.bind('ipc://' + path); os.chmod(path, 0o777); result = [f'tcp://127.0.0.1:{port}', 'ipc://' + path]"
    )
    try:
        # libzmq may take the failure of a socket for its own and end the process: that is the session's loss alone.
        with tier.session("restarts=5") as own:
            for one in url:
                tier.run_or_die(
                    "import zmq\nclient = zmq.Context().socket(zmq.DEALER); client.linger = 0; client.sndtimeo = 200\n"
                    "client.connect(url); client.send(b'hello'); time.sleep(0.2); client.close()",
                    session=own,
                    url=one,
                )
            assert tier.works(own)
        assert not tier.host("result = bool(facts['server'].poll(100))")
    finally:
        tier.host("facts.pop('server').close(0)")


def test_waiting_for_the_host_on_an_abstract_name(tier: Tier, record_property: Callable[[str, object], None]) -> None:
    name = f"\0redteam-trap-{tier.facts['host_pid']}"  # others may run this test beside us
    said = tier.run(
        "server = socket.socket(socket.AF_UNIX); server.bind(name); server.listen()\nprint('listens')", name=name
    )
    came = tier.host(
        "client = socket.socket(socket.AF_UNIX)\n"
        "with client:\n"
        "    try: client.connect(name); result = 'reached'\n"
        "    except OSError as error: result = type(error).__name__",
        name=name,
    )
    tier.run("server.close()")
    record_property("trap", f"{said} {came}")
    if tier.letter == "N":
        assert came == "ConnectionRefusedError"  # its own network namespace; Landlock has no rule for this


def test_programs_of_the_system_that_use_the_network(tier: Tier) -> None:
    found = tier.look(
        "programs = (['ping', '-c1', '127.0.0.1'], ['curl', '-m1', 'http://%s:%s' % tuple(address)], ['ssh', "
        "'x@127.0.0.1'],\n"
        "            ['bash', '-c', 'echo > /dev/tcp/%s/%s' % tuple(address)], ['ip', 'link', 'set', 'lo', 'up'])\n"
        "for words in programs:\n"
        "    found[words[0]] = attempt(lambda: subprocess.run(words, check=True, capture_output=True, timeout=10))",
        address=tier.facts["listeners"]["tcp4"],
    )
    assert "done" not in json.dumps(found)
    assert found["bash"] in ("CalledProcessError", "ENOENT")
