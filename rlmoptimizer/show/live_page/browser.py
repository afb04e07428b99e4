"""Opening the live page in the person's browser, without its address standing in the list of processes.

Every user of the machine sees the arguments of a browser that is started. So the browser is given a file that only its
owner can read, and that leads on to the page.
"""

from __future__ import annotations

import html
import os
import sys
import threading
import webbrowser
from collections.abc import Generator
from contextlib import contextmanager

from kernel_bridge.files.private_files import make_file
from rlmoptimizer.store.temporary_directory import temporary_directory

__all__ = ["has_browser", "opened"]

_PAGE = '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">\
<title>RLMOptimizer</title><meta http-equiv="refresh" content="0; url={address}"><a href="{address}">Open the page</a>'


def has_browser() -> bool:
    """Whether a window can be opened here. A browser that draws in the terminal is not wanted."""
    if sys.platform not in ("win32", "darwin") and not any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    ):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


@contextmanager
def opened(address: str) -> Generator[None]:
    """Open a browser at an address; the file that leads there is kept for as long as the block lasts.

    Raises OSError when the file cannot be made.
    """
    with temporary_directory() as directory:
        page = directory / "open.html"
        make_file(page, _PAGE.format(address=html.escape(address)).encode())
        # Some browsers are waited for until they are closed.
        threading.Thread(target=webbrowser.open, args=(page.as_uri(),), name="browser", daemon=True).start()
        yield
