"""A list as it leaves the host: a kernel gets its length, and reads what it touches page by page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PAGE_CALL", "PageSource", "PagedList"]

PageSource = Callable[[Any, int, int], list[Any]]
"""`source(key, start, stop)` gives the items from `start` on, in order: as many as it likes up to `stop`, but one."""

PAGE_CALL = "page:"
"""How the name of a call to a page source begins. No tool has such a name."""


@dataclass(frozen=True, slots=True)
class PagedList:
    """A list of plain values that stays on the host; what a tool may return, or a variable hold, at any place.

    Its kernel gets a list that calls `source` for what the code touches. A kernel that has no such source, such as that
    of a sub-agent, gets all items at once, from `read`.
    """

    source: str  # its name among the `page_sources` of the kernel
    key: Any  # plain data; it comes back from the kernel, so the source must check it like any argument
    length: int  # of the list, which must not change
    read: PageSource = field(repr=False)  # the source itself

    def whole(self) -> list[Any]:
        """All items. Raises: whatever the source raises; ValueError when it ends early."""
        items: list[Any] = []
        while len(items) < self.length:
            page = self.read(self.key, len(items), self.length)
            if not page:
                raise ValueError(f"the source {self.source!r} has {len(items)} items; the list has {self.length}")
            items += page
        return items
