"""The descriptors 0, 1 and 2, which a daemon may have closed."""

from __future__ import annotations

import os

__all__ = ["occupy_standard_files"]


def occupy_standard_files() -> None:
    """Put the null device where a process has no standard input, output or error. Raises: OSError.

    What is opened next would get those numbers: a socket to a kernel, or a file that it may read, would take for output
    whatever other code of the process prints there. What children inherit does not change.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
