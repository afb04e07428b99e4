"""A real browser for tests of pages: Chromium, driven by playwright, and watched for what no page may do.

A page fails its test by an error on its console, an uncaught exception, or a request to anywhere but this machine.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

OpenPage = Callable[..., "Page"]

# The shell has no windows, which makes it more than twice as quick.
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_HERE = ("127.0.0.1", "localhost")
_PATIENCE_MS = 60_000  # for what a page is to show; only a defect ever takes so long


def chromium() -> str:
    """The path of the machine's Chromium. Where there is none the test is skipped, but not on CI."""
    if sys.version_info >= (3, 15):
        pytest.skip("playwright does not support this Python yet")
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        why = "there is no Chromium to show the page in; on Debian: apt-get install chromium-headless-shell"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser of the calling thread.

    While it runs its thread counts as one that runs an event loop: `asyncio.run` refuses there. So a module of tests
    has one, not the whole session.
    """
    path = chromium()
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=_PATIENCE_MS)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched_pages(browser: Browser) -> Iterator[OpenPage]:
    """Gives `open_page(address, width=1400, height=900, theme="light", wait=True, allow=())`; an address may be a path.

    `wait`: until the page has drawn a view. `allow`: parts of what its console may say, for a test that ends its
    server. At the end it raises AssertionError with all that went wrong.
    """
    problems: list[str] = []
    contexts: list[Any] = []

    def said(message: ConsoleMessage, allow: Sequence[str]) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in allow):
            problems.append(f"console: {message.text}")

    def asked(request: Request) -> None:
        parts = urlsplit(request.url)
        if not (parts.scheme in ("file", "data", "blob", "about") or parts.hostname in _HERE):
            problems.append(f"request to {request.url}")

    def open_page(
        address: str | Path,
        width: int = 1400,
        height: int = 900,
        theme: Any = "light",
        wait: bool = True,
        allow: Sequence[str] = (),
    ) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        contexts.append(context)
        context.on("request", asked)
        page = context.new_page()
        page.on("console", lambda message: said(message, allow))
        page.on("pageerror", lambda error: problems.append(f"uncaught: {error.stack or error.message}"))
        page.goto(f"file://{address}" if isinstance(address, Path) else address)
        if wait:
            page.wait_for_selector(".view:not([hidden])")
        return page

    try:
        yield open_page
    finally:
        for context in contexts:
            context.close()
    assert not problems, "\n".join(problems)
