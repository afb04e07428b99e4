"""The driver: a host of kernels in one tier of confinement, in a process of its own. Knows no test.

Run as a script: `python driver.py SPEC`, where SPEC is JSON made by `rig.py`. First it makes itself what the tier asks
for: an ordinary user, from root by changing its user, with a way to the interpreter where that lies in a private
directory; namespaces refused by a system call filter, as many containers do. Then it plants secrets that no kernel
may read and listeners that no kernel may reach, and serves requests: one JSON object a line on standard input, one
answer a line on standard output. Each request runs on a thread of its own.

    {"id", "do": "open", "name", "options"}     a session; options are Python source for KernelInterpreter's arguments
    {"id", "do": "run", "name", "code", "variables"}      one cell: {"text"} or {"submitted"} or {"error", "message"}
    {"id", "do": "shut", "name"}                 end a session
    {"id", "do": "host", "code", "values"}       Python in this process, with `sessions`, `facts` and all imports of
                                                 this file at hand; what it assigns to `result` comes back
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

# -- becoming what the tier asks for ----------------------------------------------------------------------------------

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 4096, 8192, 16384, 1 << 18
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38


class Unavailable(Exception):
    """This machine cannot give the tier."""


def become(spec: dict[str, Any]) -> None:
    """Turn this process into the host that the tier wants; all of it survives an exec."""
    if spec["uid"] is not None or spec["reachable"]:
        open_a_way([*spec["paths"], spec["base"]])
    if spec["without_namespaces"]:
        refuse_namespaces()
    if spec["uid"] is not None:
        for folder in (spec["base"], *(str(path) for path in Path(spec["base"]).iterdir())):
            os.chown(folder, spec["uid"], spec["uid"])
        os.setgroups([])
        os.setresgid(spec["uid"], spec["uid"], spec["uid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])


def open_a_way(paths: Sequence[str]) -> None:
    """Let every user reach these paths, in a mount namespace of this process alone.

    Where a directory above keeps others out, it is covered by an empty one with only these paths in it, be they
    directories or, like a virtual environment's pyvenv.cfg, files.
    """
    blocked: dict[str, list[str]] = {}
    for path in paths:
        for parent in reversed(Path(path).parents):
            if not parent.stat().st_mode & 0o001:
                blocked.setdefault(str(parent), []).append(path)
                break
    if not blocked:
        return
    _call("unshare", ctypes.c_int(_CLONE_NEWNS))
    _mount("none", "/", _MS_REC | _MS_PRIVATE)
    for above, below in blocked.items():
        below = [path for path in below if not any(path.startswith(f"{other}/") for other in below)]
        aside = tempfile.mkdtemp(prefix="rt-way-", dir="/dev/shm")
        places = [f"{aside}/{number}" for number in range(len(below))]
        for place, path in zip(places, below, strict=True):
            _make_alike(place, path)
            _mount(path, place, _MS_BIND | _MS_REC)
        _mount("tmpfs", above, 0, "tmpfs", "mode=0755")
        for place, path in zip(places, below, strict=True):
            _make_alike(path, place)
            _mount(place, path, _MS_MOVE)
            # Never a whole tree at once: what is mounted there, should a move have failed, is the original.
            (os.rmdir if os.path.isdir(place) else os.unlink)(place)
        os.rmdir(aside)


def _make_alike(path: str, other: str) -> None:
    """Make what the other can be mounted on: an empty directory for a directory, an empty file for a file."""
    if os.path.isdir(other):
        os.makedirs(path, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _mount(source: str, target: str, flags: int, kind: str | None = None, options: str | None = None) -> None:
    _call(
        "mount",
        *(None if text is None else ctypes.c_char_p(os.fsencode(text)) for text in (source, target, kind)),
        ctypes.c_ulong(flags),
        None if options is None else ctypes.c_char_p(options.encode()),
    )


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        raise Unavailable(f"{name} is refused to root here: {os.strerror(ctypes.get_errno())}")


def refuse_namespaces() -> None:
    """Refuse what containers without privileges refuse: unshare, setns, and clone with a flag for a new namespace."""
    try:
        unshare, setns, clone = {"x86_64": (272, 308, 56), "aarch64": (97, 268, 220)}[platform.machine()]
    except KeyError:
        raise Unavailable(f"how {platform.machine()} refuses namespaces is not known here") from None
    eperm, enosys, allow = 0x00050001, 0x00050026, 0x7FFF0000
    load, equal, set_bits, end = 0x20, 0x15, 0x45, 0x06
    program = [
        (load, 0, 0, 0),  # the number
        (equal, 5, 0, unshare),
        (equal, 4, 0, setns),
        (equal, 4, 0, 435),  # clone3
        (equal, 0, 4, clone),
        (load, 0, 0, 16),  # the flags
        (set_bits, 0, 2, 0x7E020000),
        (end, 0, 0, eperm),
        (end, 0, 0, enosys),
        (end, 0, 0, allow),
    ]
    code = b"".join(struct.pack("<HBBI", *step) for step in program)
    held = ctypes.create_string_buffer(code, len(code))
    described = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(held)))
    if os.geteuid() != 0:
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _PR_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(described)), 0, 0)


# -- what is planted ---------------------------------------------------------------------------------------------------


def plant(spec: dict[str, Any]) -> dict[str, Any]:
    """Make the files that a kernel may not read, each holding a secret of its own; their paths by name."""
    base, secrets = Path(spec["base"]), spec["secrets"]
    ssh = base / "home" / ".ssh"
    ssh.mkdir(mode=0o700)
    files = {
        "ssh_key": ssh / "id_ed25519",
        "home_file": base / "home" / "notes.txt",
        "run_store": base / "runs" / "store.sqlite3",
        "validation_set": base / "runs" / "val.json",
        "host_tmp": Path(tempfile.gettempdir()) / "marker.txt",
    }
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets[name], encoding="utf-8")
    os.chmod(files["ssh_key"], 0o600)
    return {name: str(path) for name, path in files.items()}


class Listeners:
    """Sockets of the host that count who comes. `addresses` by kind; `taken` by kind."""

    def __init__(self, base: Path) -> None:
        self.addresses: dict[str, Any] = {}
        self.taken: dict[str, int] = {}
        abstract = "\0" + f"redteam-{os.getpid()}"
        kinds = {
            "tcp4": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "tcp6": (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            "udp4": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "udp6": (socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 0)),
            "unix": (socket.AF_UNIX, socket.SOCK_STREAM, str(base / "tmp" / "stream.sock")),
            "unix_dgram": (socket.AF_UNIX, socket.SOCK_DGRAM, str(base / "tmp" / "dgram.sock")),
            "abstract": (socket.AF_UNIX, socket.SOCK_STREAM, abstract),
            "abstract_dgram": (socket.AF_UNIX, socket.SOCK_DGRAM, abstract + "-dgram"),
        }
        for kind, (family, type_, address) in kinds.items():
            with contextlib.suppress(OSError):  # a machine without IPv6
                self._listen(kind, family, type_, address)

    def _listen(self, kind: str, family: int, type_: int, address: Any) -> None:
        listener = socket.socket(family, type_)
        listener.bind(address)
        if family == socket.AF_UNIX and isinstance(address, str) and not address.startswith("\0"):
            os.chmod(address, 0o777)
        if type_ == socket.SOCK_STREAM:
            listener.listen()
        name = listener.getsockname()
        self.addresses[kind] = list(name[:2]) if isinstance(name, tuple) else address
        self.taken[kind] = 0
        threading.Thread(target=self._count, args=(kind, listener, type_), daemon=True).start()

    def _count(self, kind: str, listener: socket.socket, type_: int) -> None:
        while True:
            if type_ == socket.SOCK_STREAM:
                listener.accept()[0].close()
            else:
                listener.recv(4096)
            self.taken[kind] += 1


# -- serving -----------------------------------------------------------------------------------------------------------


class Driver:
    """Serves requests until standard input ends."""

    def __init__(self, spec: dict[str, Any], answers: int) -> None:
        self._answers = os.fdopen(answers, "w", encoding="utf-8", buffering=1)
        self._answering = threading.Lock()
        self.sessions: dict[str, Any] = {}
        listeners = Listeners(Path(spec["base"]))
        self.in_memory = spec["secrets"]["in_memory"]
        self.facts: dict[str, Any] = {
            "host_pid": os.getpid(),
            "uid": os.getuid(),
            "base": spec["base"],
            "runtime_root": tempfile.gettempdir(),
            "files": plant(spec),
            "listeners": listeners.addresses,
        }
        self.names: dict[str, Any] = {
            **globals(),
            "sessions": self.sessions,
            "facts": self.facts,
            "listeners": listeners,
            "calls": [],  # what `echo` below was called with
            "crowd": {"now": 0, "most": 0},  # how many calls of the tool of this name run, and ran at once
        }

    def prepare(self, spec: dict[str, Any]) -> None:
        """Import what a host has, and see that the machine gives the tier."""
        from kernel_bridge import Confinement, KernelInterpreter, Limits, probe
        from kernel_bridge.confine import tier_landlock as landlocked

        if spec["keep_root"]:
            landlocked.unprivileged_user = lambda python: None
        found = probe()
        if found.tier != spec["letter"]:
            why = "; ".join(found.notes) or "a stronger one is to be had"
            raise Unavailable(f"the probe says tier {found.tier}: {why}")
        self.facts["probe"] = found.table()
        self.names.update(
            Confinement=Confinement,
            KernelInterpreter=KernelInterpreter,
            Limits=Limits,
            probe=probe,
            tools=self.tools(),
        )

    def tools(self) -> dict[str, Any]:
        """The host tools that every session has."""
        calls: list[Any] = self.names["calls"]
        crowd: dict[str, int] = self.names["crowd"]
        counting = threading.Condition()

        def echo(value: Any) -> Any:
            """Return the value."""
            calls.append(value)
            return value

        def fail(message: str) -> None:
            """Raise ValueError with the message."""
            raise ValueError(message)

        def join_the_crowd(value: Any = None) -> None:
            """Take a while, and count who does so at the same time."""
            with counting:
                crowd["now"] += 1
                crowd["most"] = max(crowd["most"], crowd["now"])
            time.sleep(0.02)
            with counting:
                crowd["now"] -= 1

        def wait_for_company(value: Any = None) -> None:
            """Join the crowd until somebody else has, but not for long."""
            with counting:
                crowd["now"] += 1
                crowd["most"] = max(crowd["most"], crowd["now"])
                counting.notify_all()
                counting.wait_for(lambda: crowd["most"] > 1, 1.5)
                crowd["now"] -= 1

        tools = (echo, fail, join_the_crowd, wait_for_company)
        return {tool.__name__: tool for tool in tools}

    def answer(self, request: dict[str, Any]) -> None:
        try:
            found = getattr(self, f"do_{request.pop('do')}")(**{k: v for k, v in request.items() if k != "id"})
        except BaseException as error:  # noqa: BLE001 - the driver goes on whatever a request does
            found = {"error": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        line = json.dumps({"id": request["id"], **found}, default=repr)
        with self._answering:
            self._answers.write(line + "\n")

    def do_open(self, name: str, options: str) -> dict[str, Any]:
        names = dict(self.names)
        arguments = eval(f"dict({options})", names)  # the tests' own words
        arguments.setdefault("tools", self.names["tools"])
        # Its first kernel was kept warm, and later ones are not: both kinds are attacked.
        with names["KernelInterpreter"].factory(prewarm=1, **arguments) as factory:
            session = factory()
            session.start()
        self.sessions[name] = session
        return {"text": None}

    def do_run(self, name: str, code: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        found = self.sessions[name].execute(code, variables)
        return {"submitted": found.output} if hasattr(found, "output") else {"text": found}

    def do_shut(self, name: str) -> dict[str, Any]:
        session = self.sessions.pop(name, None)
        if session is not None:
            session.shutdown()
        return {"text": None}

    def do_host(self, code: str, values: dict[str, Any]) -> dict[str, Any]:
        names = {**self.names, **values, "result": None}
        exec(code, names)
        return {"result": names["result"]}

    def serve(self) -> None:
        for line in sys.stdin:
            threading.Thread(target=self.answer, args=(json.loads(line),), daemon=True).start()
        for name in list(self.sessions):
            self.do_shut(name)


def kernel_pids(session: Any) -> list[int]:
    """The processes of a session's kernel, outermost first, without the guardian."""
    from kernel_bridge.process.watchdog import descendants

    return descendants(guardian_pid(session))[1:]


def guardian_pid(session: Any) -> int:
    """The process that watches over a session's kernel."""
    return session._session._kernel.process.pid


def directory(session: Any) -> str:
    """A session's own directory on the host."""
    return str(session._session._starter.home.directory.path)


def main() -> None:
    spec = json.loads(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever prints does not mix with the answers
    try:
        if not spec["became"]:
            become(spec)
            os.set_inheritable(answers, True)
            os.dup2(answers, 1)
            spec["became"] = True
            # The planted secrets are on the command line now.
            os.execv(sys.executable, [sys.executable, __file__, json.dumps(spec)])
        sys.path[:0] = [path for path in spec["imports"] if path not in sys.path]
        driver = Driver(spec, answers)
        driver.prepare(spec)
        ready: dict[str, Any] = {"id": 0, "facts": driver.facts}
    except Unavailable as error:
        os.write(answers, json.dumps({"id": 0, "unavailable": str(error)}).encode() + b"\n")
        return
    os.write(answers, json.dumps(ready).encode() + b"\n")
    driver.serve()


if __name__ == "__main__":
    main()
