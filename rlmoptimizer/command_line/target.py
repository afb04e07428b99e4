"""Which optimization a command is about: a run_storage_dir or a store file, and the number in it."""

from __future__ import annotations

from pathlib import Path

from kernel_bridge.text import shorten_list
from rlmoptimizer.command_line.errors import WrongCall
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.store.directory import store_path, stores_in
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["open_target", "target_path"]

_SHOWN = 10  # numbers of optimizations in a message


def open_target(path: Path, number: int | None = None) -> StoreReader:
    """Open the store of an optimization to be read, also while it runs, on a read-only disk, and after it died.

    Args:
        path: a `run_storage_dir` or a store file.
        number: of the optimization in the directory; None: the newest.

    Raises:
        InvalidSetup: there is no such optimization.
        StoreCorrupt: the store is torn, of another program or of another version.
        WrongCall: a number goes with a file.
    """
    return StoreReader.open(target_path(path, number))


def target_path(path: Path, number: int | None = None) -> Path:
    """The store file that `open_target` opens; it is not looked into. Raises `InvalidSetup` and `WrongCall`."""
    if not path.exists():
        raise InvalidSetup(f"there is nothing at {path}; name a run_storage_dir or a store file")
    if not path.is_dir():
        if number is not None:
            raise WrongCall(f"--number chooses an optimization of a directory, and {path} is a file; leave it out")
        return path
    numbers = stores_in(path)
    if not numbers:
        raise InvalidSetup(f"there is no run store in {path}; name the run_storage_dir of a compile that has begun")
    if number is None:
        return store_path(path, numbers[-1])
    if number not in numbers:
        newest_first = [str(one) for one in reversed(numbers)]
        raise InvalidSetup(f"there is no optimization {number} in {path}; it has {shorten_list(newest_first, _SHOWN)}")
    return store_path(path, number)
