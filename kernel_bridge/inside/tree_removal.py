"""The removal of a directory tree of any depth and with any modes, without following a link."""

from __future__ import annotations

import contextlib
import os
import stat

_OPEN = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def remove_tree(path: str | os.PathLike[str], last: str | None = None) -> None:
    """Delete a directory and all in it, once nothing writes there any more. What cannot be deleted stays.

    `last`: the file in it that goes last, by which the rest is found again when this process is killed on the way.
    `shutil.rmtree` goes down one call and one descriptor for each level, and gives up after a thousand.
    """
    if not hasattr(os, "O_DIRECTORY"):
        import shutil

        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        _unlock(path)
        top = os.open(path, _OPEN)
        try:
            _empty(top, last)
            _empty(top)
        finally:
            os.close(top)
        os.rmdir(path)


def _empty(top: int, last: str | None = None) -> None:
    """Empty a directory but for `last`. What lies deeper is moved up into it first, so that depth costs nothing."""
    progress = True
    while progress:
        progress = False
        for name in _unlink_files(top, last):
            with contextlib.suppress(OSError):
                _lift(top, name)
                os.rmdir(name, dir_fd=top)
                progress = True


def _lift(top: int, name: str) -> None:
    """Unlink the files of a directory in `top`, and move its directories up beside it."""
    _unlock(name, top)
    below = os.open(name, _OPEN, dir_fd=top)
    try:
        for inner in _unlink_files(below):
            with contextlib.suppress(OSError):
                _unlock(inner, below)  # a directory that is moved must be writable itself
                os.rename(inner, f"lifted-{os.urandom(8).hex()}", src_dir_fd=below, dst_dir_fd=top)
    finally:
        os.close(below)


def _unlock(path: str | os.PathLike[str], folder: int | None = None) -> None:
    """Make a directory one that its owner can empty. Nothing is done to a link or what it points to."""
    if stat.S_ISDIR(os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode):
        os.chmod(path, 0o700, dir_fd=folder)


def _unlink_files(directory: int, but: str | None = None) -> list[str]:
    """Unlink every file but the one named `but`. Returns the names of the directories."""
    kept: list[str] = []
    for name in os.listdir(directory):
        if name == but:
            continue
        try:
            os.unlink(name, dir_fd=directory)
        except (IsADirectoryError, PermissionError):
            kept.append(name)
        except OSError:
            continue
    return kept
