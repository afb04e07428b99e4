"""A process that has imported what is slow to import, and forks a child for each script it is sent.

    python warm_process.py SOCKET PRELUDE

PRELUDE is Python, run first. SOCKET is a descriptor; a byte on it says when that is done. Then each message on it
carries four more: a connection and the child's three standard streams. The script comes as one line of JSON on the
connection. The child's process id is answered, and when it has ended its exit status, or minus the signal that killed
it. The child is killed when the other end closes the connection, and collected only then: until then its process id is
nobody else's. Imports nothing of ours.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from typing import Any


def wait_for_script(control: socket.socket) -> str:
    """Returns in the children only, as often as one is asked for; the process itself ends with the control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers need not be collected
    control.sendall(b"r")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            return _fork_below_keeper(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork_below_keeper(connection_descriptor: int, *streams: int) -> str:
    """Returns in the child; the keeper ends here."""
    connection = socket.socket(fileno=connection_descriptor)
    with connection.makefile("r", encoding="utf-8") as lines:
        asked: dict[str, Any] = json.loads(lines.readline())
    child = os.fork()
    if child == 0:
        connection.close()
        _become(asked, streams)
        return asked["code"]
    for descriptor in (*streams, 0, 1, 2):  # others wait for the end of the child's output
        os.close(descriptor)

    def end_with_connection() -> None:
        connection.recv(1)
        os.kill(child, signal.SIGKILL)

    connection.sendall(b"%d\n" % child)
    ending = threading.Thread(target=end_with_connection)
    ending.start()
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    connection.sendall(b"%d\n" % (ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status))
    ending.join()
    os.waitpid(child, 0)
    os._exit(0)


def _become(asked: dict[str, Any], streams: tuple[int, ...]) -> None:
    """Become the process that `python -c` would be."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(  # noqa: SIM115 - for the life of the process
            number,
            "w" if number else "r",
            buffering=1 if number == 2 or os.isatty(number) else -1,
            encoding="utf-8",
            errors="backslashreplace" if number == 2 else "strict",
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if asked["new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None  # TMPDIR is another one now
    os.chdir(asked["directory"])
    sys.argv[:] = ["-c", *asked["arguments"]]
    sys.path[:] = ["", *asked["path"]]


if __name__ == "__main__":
    exec(sys.argv[2], {})
    gc.collect()
    gc.freeze()  # a child that looks through all that was imported would copy it, and take a second to end
    _code = wait_for_script(socket.socket(fileno=int(sys.argv[1])))
    del globals()["__file__"]
    exec(compile(_code, "<string>", "exec"))
