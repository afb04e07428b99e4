"""What tests of pages share: a browser for a module of them, and pages that are watched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browser import OpenPage, running_browser, watched_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser(nothing_left_by_the_module: None) -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens a page and watches it to the end of the test."""
    with watched_pages(browser) as opening:
        yield opening
