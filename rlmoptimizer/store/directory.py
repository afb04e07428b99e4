"""The files of a directory that are run stores, by their numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from rlmoptimizer.errors import InvalidSetup

__all__ = ["number_of", "store_path", "stores_in"]

_NAME: Final = "runs-{:04d}.sqlite"
_NAMES: Final = re.compile(r"runs-(\d{4}|[1-9]\d{4,8})\.sqlite")


def store_path(directory: Path, number: int) -> Path:
    return directory / _NAME.format(number)


def stores_in(directory: Path) -> list[int]:
    """The numbers of the stores in a directory, ascending; [] also when there is no directory.

    Raises `InvalidSetup` when it cannot be searched.
    """
    try:
        paths = list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InvalidSetup(f"{directory} cannot be searched for run stores: {error}") from error
    numbers = (number_of(path) for path in paths)
    return sorted(number for number in numbers if number is not None)


def number_of(path: Path) -> int | None:
    """The number that a store has in its directory; None: the file has a name of its own."""
    match = _NAMES.fullmatch(path.name)
    return int(match[1]) if match else None
