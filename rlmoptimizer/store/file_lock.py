"""A lock on a file that one process at a time holds, and that ends with the process, however it ends.

Others may be able to write to the directory. So what lies under the file's name is neither followed nor changed before
it is known to be a lock of ours: a link there could lead to any file of this user. (The filelock library empties it.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import weakref
from pathlib import Path
from typing import Final

__all__ = ["FileLock", "Held", "check_own", "holder", "lock_path"]

_LOOKS: Final = 10  # how often a lock that somebody has is tried again, because `holder` has it while it looks
_LOOK_SECONDS: Final = 0.005


class Held(Exception):
    """Another holder has the lock; `pid` is its process, or None when it did not say."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        super().__init__("held by " + ("another process" if pid is None else f"process {pid}"))


class FileLock:
    """Holds the lock until `release`, which removes the file; a process that is killed leaves it.

    Raises `Held` at once when somebody else has it, also another thread of this process, and OSError when the file
    cannot be made, or something else lies in its place.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _acquire(path)
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the name of its holder
            os.ftruncate(self._fd, 0)
            os.write(self._fd, str(os.getpid()).encode())
        _locks.add(self)

    def release(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # Windows removes no file that is open
                self._path.unlink()
            os.close(fd)

    def _forget(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_path(store: Path) -> Path:
    """The file of the lock that the process holds which writes to a store."""
    return store.with_name(f"{store.name}.lock")


def holder(store: Path) -> int | None:
    """The process that writes to a store, 0 when it does not say which it is; None: nobody does.

    Changes nothing, and works where nothing can be written.
    """
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    try:
        fd = os.open(lock_path(store), flags)
    except OSError:
        return None
    try:
        check_own(os.fstat(fd), lock_path(store))
        return None if _try_lock(fd, shared=True) else _pid_in(fd) or 0
    except OSError:  # something else lies in the place of a lock
        return None
    finally:
        os.close(fd)  # which ends the lock too


def check_own(found: os.stat_result, path: Path) -> None:
    """See that what lies at a path is a plain file without other names, of this user or of the directory's owner.

    Raises OSError that says what it is.
    """
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EPERM, "it is no plain file; remove it", str(path))
    if found.st_nlink > 1:
        raise OSError(errno.EPERM, "it has another name, under which it may be any file of yours; remove it", str(path))
    if os.name == "posix" and found.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
        text = f"it belongs to another user (number {found.st_uid}); remove it, or use a directory of your own"
        raise OSError(errno.EPERM, text, str(path))


_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()  # of this process, for its forks


def _leave_to_parent() -> None:
    """In the child of a fork, which has the locks too, and would keep them when its parent is killed."""
    for lock in tuple(_locks):
        lock._forget()  # pyright: ignore[reportPrivateUsage] - its own other half


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _acquire(path: Path) -> int:
    while True:
        fd = _open(path)
        try:
            if not _locked_in_time(fd):
                raise Held(_pid_in(fd))
            # Its last holder may have removed the file after we opened it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.lstat(path)):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _locked_in_time(fd: int) -> bool:
    for _ in range(_LOOKS):
        if _try_lock(fd):
            return True
        time.sleep(_LOOK_SECONDS)
    return _try_lock(fd)


def _pid_in(fd: int) -> int | None:
    text = os.pread(fd, 32, 0) if hasattr(os, "pread") else b""
    return int(text) if text.isdigit() else None


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    try:
        fd = os.open(path, flags, 0o644)
    except OSError as error:
        if path.is_symlink():
            raise OSError(error.errno, "it is a symbolic link, which is not followed; remove it", str(path)) from error
        raise
    try:
        check_own(os.fstat(fd), path)
        if hasattr(os, "fchmod"):  # the umask may deny its own owner
            os.fchmod(fd, 0o644)
    except BaseException:
        os.close(fd)
        raise
    return fd


if os.name == "nt":  # pragma: no cover
    import msvcrt

    def _try_lock(fd: int, *, shared: bool = False) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBRLCK if shared else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(fd: int, *, shared: bool = False) -> bool:
        # Not SQLite's kind of lock: a process loses that when it closes any descriptor of the file.
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
