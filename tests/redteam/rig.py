"""The rig: the tests' end of a driver, and the tiers there are. Knows processes and JSON lines, no attack."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_bridge.confine.launch_plan import PACKAGE
from kernel_bridge.confine.readable_paths import python_paths

HERE = Path(__file__).resolve().parent
ANSWER_SECONDS = 120.0  # a host that needs longer for one request hangs
RAN_LONGER = "cell ran longer than"  # stands in what is told of a cell that its limit of time has ended
PLANTED = ("environment", "ssh_key", "home_file", "run_store", "validation_set", "host_tmp", "in_memory")
"""What a host holds that no kernel may learn. All of it also stands on the driver's command line."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to run a host of kernels."""

    name: str
    letter: str  # the tier that the probe must find
    root: bool  # whether the host is root
    without_namespaces: bool = False
    keep_root: bool = False  # under Landlock: as if the kernel's own user could not reach Python


KINDS = {
    kind.name: kind
    for kind in (
        Kind("root-N", "N", root=True),
        Kind("user-N", "N", root=False),
        Kind("root-L", "L", root=True, without_namespaces=True),
        Kind("root-L-kept", "L", root=True, without_namespaces=True, keep_root=True),
        Kind("user-L", "L", root=False, without_namespaces=True),
    )
}


USUAL = ("root-N", "user-L")  # both tiers, and both users


def kinds_here() -> list[str]:
    """The names of the kinds that are to be attacked here: root can be anybody, an ordinary user only itself.

    Of the usual kinds, or as REDTEAM in the environment says: "all", or "others" for all but those.
    """
    if not sys.platform.startswith("linux"):
        return []
    root = os.geteuid() == 0
    possible = [name for name, kind in KINDS.items() if root or not kind.root]
    usual = [name for name in possible if name in USUAL or not root]
    asked = {"": usual, "all": possible, "others": [name for name in possible if name not in usual]}
    return asked[os.environ.get("REDTEAM", "")]


_NOTE = re.compile(r"(?:\A|\n)\[Should the kernel die, this would be lost[^\n]*\]\s*\Z")


def without_note(text: str) -> str:
    """A cell's text without the line at its end that tells what no checkpoint has."""
    return _NOTE.sub("", text)


class TierUnavailable(Exception):
    """This machine cannot run such a host. The text says why."""


class CellError(Exception):
    """What a request raised in the driver: `kind` is the exception's class name there."""

    def __init__(self, kind: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{kind}: {message}\n{traceback if kind not in _EXPECTED else ''}")
        self.kind = kind
        self.message = message


TRIES = 10  # for a cell that a small limit of time has ended because the machine stood still
_EXPECTED = ("CodeExecutionError", "CodeInterpreterError", "SyntaxError")

PRELUDE = '''
import ctypes, errno, json, mmap, os, signal, socket, struct, subprocess, sys, threading, time
_libc = ctypes.CDLL(None, use_errno=True)

def syscall(number, *arguments):
    """The result, or the name of the error."""
    ctypes.set_errno(0)
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    _libc.syscall.restype = ctypes.c_long
    found = _libc.syscall(ctypes.c_long(number), *words)
    return found if found >= 0 else errno.errorcode.get(ctypes.get_errno(), ctypes.get_errno())

def attempt(action, *arguments, **keywords):
    """What came of it: "done: ..." or the error's name, an OSError by its symbol."""
    try:
        return f"done: {action(*arguments, **keywords)!r}"[:2000]
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)
    except Exception as error:
        return type(error).__name__

def read(path, size=100000):
    with open(path, "rb") as file:
        return file.read(size)

def write(path, data=b"changed by the kernel"):
    with open(path, "wb") as file:
        return file.write(data)
'''
"""What every session knows beforehand: `syscall`, `attempt`, `read`, `write` and the usual imports."""


# Of the calls that attacks make by number: on x86_64 and, where it has them, on aarch64.
NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {"socket": 41},
    "aarch64": {"socket": 198},
}


class Tier:
    """A host of kernels in one tier. `facts` is what the driver says of itself, `secrets` what no kernel may know."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.name = kind.name
        self.letter = kind.letter
        self.secrets = {name: f"planted-{name}-{secrets.token_hex(8)}" for name in PLANTED}
        self.base = Path(tempfile.mkdtemp(prefix="rt-", dir=_open_to_all()))
        self._numbers = iter(range(1, 10**9))
        self._waiting: dict[int, Future[dict[str, Any]]] = {0: Future()}
        self._changing = threading.Lock()
        self._opened: set[str] = set()
        try:
            self._process = self._start()
            threading.Thread(target=self._read, name=f"answers of {kind.name}", daemon=True).start()
            first = self._waiting[0].result(ANSWER_SECONDS)
            if "unavailable" in first:
                raise TierUnavailable(first["unavailable"])
            self.facts: dict[str, Any] = first["facts"]
            self.open("shared")
        except BaseException:
            self.close()
            raise

    def _start(self) -> subprocess.Popen[str]:
        for name in ("home", "tmp", "runs"):
            (self.base / name).mkdir(mode=0o755)
        os.chmod(self.base, 0o711)
        root = os.geteuid() == 0
        uid = 0x60000000 + secrets.randbelow(2**24) if root and not self.kind.root else None
        imports = [str(PACKAGE.parent), str(HERE.parent / "rigs")]
        ours = [str(PACKAGE), str(PACKAGE.parent / "rlmoptimizer"), str(HERE.parent)]
        spec = {
            "became": False,
            "letter": self.letter,
            "uid": uid,
            "reachable": root and self.kind.without_namespaces and not self.kind.keep_root,
            "without_namespaces": self.kind.without_namespaces,
            "keep_root": self.kind.keep_root,
            "base": str(self.base),
            "paths": [*python_paths(sys.executable), *ours],
            "imports": imports,
            "secrets": self.secrets,
        }
        environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
        environment.update(
            HOME=str(self.base / "home"),
            TMPDIR=str(self.base / "tmp"),
            DSPY_CACHEDIR=str(self.base / "cache"),
            PYTHONDONTWRITEBYTECODE="1",
            OPENAI_API_KEY=self.secrets["environment"],
        )
        with (self.base / "stderr").open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, str(HERE / "driver.py"), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                text=True,
                start_new_session=True,
            )

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._changing:
                waiting = self._waiting.pop(answer["id"], None)
            if waiting is not None:
                waiting.set_result(answer)
        with self._changing:
            lost = list(self._waiting.values())
            self._waiting.clear()
        for waiting in lost:
            waiting.set_exception(AssertionError(f"the host {self.name} is gone:\n{self._last_words()}"))

    def _last_words(self) -> str:
        return (self.base / "stderr").read_text(encoding="utf-8", errors="replace")[-3000:]

    def begin(self, do: str, **arguments: Any) -> Future[dict[str, Any]]:
        """Send a request and do not wait; see driver.py for what there is."""
        id = next(self._numbers)
        future: Future[dict[str, Any]] = Future()
        with self._changing:
            self._waiting[id] = future
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": id, "do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return future

    def ask(self, do: str, *, seconds: float = ANSWER_SECONDS, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait. Raises: CellError with what it raised there; AssertionError when the host hangs."""
        return self.take(self.begin(do, **arguments), seconds)

    def take(self, future: Future[dict[str, Any]], seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Wait for a request that was begun; raises as `ask` does."""
        try:
            answer = future.result(seconds)
        except FutureTimeout:
            raise AssertionError(f"the host {self.name} did not answer within {seconds:g} s") from None
        if "error" in answer:
            raise CellError(answer["error"], answer["message"], answer.get("traceback", ""))
        return answer

    def run(self, code: str, *, session: str = "shared", seconds: float = ANSWER_SECONDS, **variables: Any) -> str:
        """Run a cell and return its text. Raises: CellError."""
        found = self.ask("run", seconds=seconds, name=session, code=code, variables=variables)
        assert "submitted" not in found, found
        return without_note(found["text"] or "")

    def run_in_time(self, code: str, *, session: str, **variables: Any) -> str:
        """Run a cell that takes but a moment; again when a small limit of time has ended it all the same."""
        for _ in range(TRIES - 1):
            try:
                return self.run(code, session=session, **variables)
            except CellError as error:
                if RAN_LONGER not in error.message:
                    raise
        return self.run(code, session=session, **variables)

    def host(self, code: str, *, seconds: float = ANSWER_SECONDS, **values: Any) -> Any:
        """Run Python in the host itself; what it assigns to `result` comes back."""
        return self.ask("host", seconds=seconds, code=code, values=values)["result"]

    def run_or_die(self, code: str, *, session: str, **variables: Any) -> str:
        """Run a cell that may kill its kernel; its text, or what the session says of the death."""
        try:
            return self.run(code, session=session, **variables)
        except CellError as error:
            if error.kind != "CodeExecutionError":
                raise
            return error.message

    def number(self, call: str) -> int:
        """The number of a system call on this machine."""
        return NUMBERS[platform.machine()][call]

    def look(self, code: str, *, session: str = "shared", seconds: float = ANSWER_SECONDS, **variables: Any) -> Any:
        """Run a cell that fills the dict `found`, and return that."""
        text = self.run(
            f"import json\nfound = {{}}\n{code}\nprint(json.dumps(found, default=repr))",
            session=session,
            seconds=seconds,
            **variables,
        )
        return json.loads(text.splitlines()[-1])

    def open(self, name: str, options: str = "") -> None:
        """Open a session and run the prelude in it."""
        self._opened.add(name)
        self.ask("open", name=name, options=options)
        self.run_in_time(PRELUDE, session=name)

    def shut(self, name: str) -> None:
        self._opened.discard(name)
        self.ask("shut", name=name)

    @contextlib.contextmanager
    def session(self, options: str = "", *, name: str = "own") -> Iterator[str]:
        """A session of the test's own."""
        self.open(name, options)
        try:
            yield name
        finally:
            self.shut(name)

    def works(self, session: str = "shared") -> bool:
        """Whether a session computes and reaches its tools."""
        return self.run_in_time("print(echo(6 * 7))", session=session) == "42"

    def assert_secret(self, text: str) -> None:
        """Fail when the text holds anything that was planted."""
        told = [name for name, secret in self.secrets.items() if secret in text]
        assert not told, f"{self.name}: the kernel found out {told}: {text[:500]}"

    def close(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        shutil.rmtree(self.base, ignore_errors=True)


def _open_to_all() -> str:
    """A temporary directory that every user can pass through, where there is one."""
    for folder in (tempfile.gettempdir(), os.environ.get("PYTEST_DEBUG_TEMPROOT", "/tmp"), "/tmp"):
        path = Path(folder).resolve()
        if all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents)):
            return folder
    return tempfile.gettempdir()
