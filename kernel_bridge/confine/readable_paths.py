"""The paths of the host that a kernel needs to read, and so may. Everything else is out of its reach.

Narrow on purpose: a project may lie anywhere, below /usr too (/usr/src/app in many containers), or have its virtual
environment at its own root.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.trial_program import run_and_read
from kernel_bridge.errors import TransientError

__all__ = [
    "SYSTEM_FILES",
    "ExtraPathUnusable",
    "check_extra",
    "check_shared",
    "extra_paths",
    "python_paths",
    "system_directories",
]

_SYSTEM = ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/libexec",
           "/usr/include", "/usr/share", "/usr/local/bin", "/usr/local/sbin", "/usr/local/lib", "/usr/local/lib64",
           "/usr/local/include", "/usr/local/share", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
           "/nix/store")  # fmt: skip

SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ssl/certs",  # and not /etc/ssl/private
    "/etc/ssl/cert.pem",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/openssl.cnf",
    "/etc/crypto-policies",
    "/etc/fonts",
    "/etc/localtime",
    "/etc/alternatives",
)
"""What of /etc a Python and its libraries read, and which holds nothing private."""

# Of a prefix that may be a project's or a person's own directory.
_OF_A_PREFIX = ("bin", "lib", "lib64", "include", "pyvenv.cfg", "share/jupyter", "etc/jupyter", "etc/ipython")


def system_directories() -> list[str]:
    """Where the system keeps its programs and libraries, as far as it is there. May name symbolic links."""
    return [path for path in (*_SYSTEM, *sorted(glob.glob("/usr/local/cuda*"))) if os.path.lexists(path)]


def extra_paths(limits: Confinement) -> tuple[list[str], list[str]]:
    """The paths that were asked for, as absolute ones: those to read and those to write."""
    read_only = [str(Path(path).absolute()) for path in limits.read_only]
    return read_only, [str(Path(path).absolute()) for path in limits.writable]


class ExtraPathUnusable(OSError):
    """A path that the kernel was to see is not there, or the kernel's user may not use it."""


def check_extra(limits: Confinement) -> None:
    """See that the paths that were asked for are there. Raises: ExtraPathUnusable, naming the first that is not."""
    for name, paths in (("read_only", limits.read_only), ("writable", limits.writable)):
        for path in paths:
            if not os.path.exists(path):
                raise ExtraPathUnusable(f"Confinement.{name} names {os.fspath(path)!r}, and there is nothing there")


def check_shared(limits: Confinement) -> None:
    """See that other users may use the paths that were asked for. Raises: ExtraPathUnusable, naming one."""
    asked = [("writable", path, 0o002, "write") for path in limits.writable]
    asked += [("read_only", path, 0o004, "read") for path in limits.read_only]
    for name, path, bit, what in asked:
        if not os.stat(path).st_mode & bit:
            raise ExtraPathUnusable(
                f"Confinement.{name} names {os.fspath(path)!r}, which other users may not {what}, and the kernel of a "
                f"root runs as another user; run chmod o+{what[0]}X on it, or start this process as an ordinary user"
            )


@functools.lru_cache(maxsize=16)
def python_paths(python: str) -> tuple[str, ...]:
    """The directories and files that an interpreter needs to be read: its prefixes, its packages, its program.

    Of a virtual environment, and of a prefix that is a home directory or above one, only the parts that are Python's.
    What else is on its path, such as the sources of packages installed for editing, is left out; it can be named in
    `Confinement.read_only`.

    Raises:
        OSError: the interpreter cannot be run.
    """
    env = dict(os.environ)
    if python != sys.executable:  # as the kernel will have it
        for name in ("PYTHONHOME", "PYTHONPATH"):
            env.pop(name, None)
    ended = run_and_read([python, "-c", _ASK], seconds=_ASK_SECONDS, cwd="/", env=env, answers=True)
    try:
        facts = json.loads(ended.answer)
    except ValueError:
        said = ended.stderr.decode("utf-8", "replace").strip()[-500:]
        # Never a fact about confinement: this interpreter is to be the kernel's, whatever confines it.
        raise TransientError(f"{python} does not answer: {said or 'it says nothing'}") from None
    wanted = [part for prefix in facts["prefixes"] for part in _parts(os.path.abspath(prefix))]
    wanted += [os.path.abspath(path) for path in facts["packages"]]
    wanted += _links(facts["program"])
    found: list[str] = []
    for path in wanted:
        if os.path.exists(path) and not any(path == above or path.startswith(f"{above}/") for above in found):
            found.append(path)
    return tuple(found)


def _parts(prefix: str) -> Iterator[str]:
    home = os.path.expanduser("~")
    personal = home == prefix or home.startswith(prefix.rstrip("/") + "/")
    if prefix in ("/usr", "/usr/local"):
        return  # what the system's directories hold
    if personal or os.path.exists(os.path.join(prefix, "pyvenv.cfg")):
        for part in _OF_A_PREFIX:
            yield os.path.join(prefix, part)
    else:
        yield prefix


def _links(program: str) -> Iterator[str]:
    """An interpreter's program, and every link on the way to it."""
    seen: set[str] = set()
    while program not in seen:
        seen.add(program)
        yield program
        if os.path.islink(program):
            program = os.path.normpath(os.path.join(os.path.dirname(program), os.readlink(program)))


_ASK_SECONDS = 30
_ASK = """
import json, os, sys
said = json.dumps({
    "program": os.path.abspath(sys.executable),
    "prefixes": [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix,
                 os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)],
    "packages": [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))],
})
with open(int(sys.argv[1]), "w") as answer:
    answer.write(said)
"""
