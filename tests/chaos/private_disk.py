"""A small disk that one process and its children see: a tmpfs in a mount namespace of its own. Imports nothing heavy.

As root, or as an ordinary user where the system lets users make namespaces.
"""

from __future__ import annotations

import ctypes
import os
import sys

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_REC, _PRIVATE = 0x4000, 1 << 18


def enter(directory: str, size: int) -> None:
    """Mount an empty disk of so many bytes there. The process must have one thread. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    _check(libc.unshare(_NEWNS if uid == 0 else _NEWNS | _NEWUSER))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    _check(libc.mount(b"none", b"/", None, _REC | _PRIVATE, None))
    _check(libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", 0, f"size={size},mode=0700".encode()))


def fill(directory: str, *, leave: int) -> str:
    """Take all of the disk there but so many bytes; gives the file that takes them."""
    filler = os.path.join(directory, "filler")
    room = os.statvfs(directory)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - leave))
    return filler


def _check(result: int) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


if __name__ == "__main__":  # whether it can be had
    try:
        enter(sys.argv[1], 1 << 20)
    except OSError as error:
        sys.exit(f"no mount namespace can be had: {error}")
