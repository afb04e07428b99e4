"""What a cell finds bound by name: host tools, output fields, variables. Which of them will do."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernel_bridge.options import refuse_unless
from kernel_bridge.wire import PageSource

__all__ = ["RESERVED_NAMES", "check_names", "checked_fields", "checked_page_sources", "checked_tools"]

RESERVED_NAMES = frozenset({"SUBMIT", "__builtins__"})


def check_names(names: Sequence[Any], what: str) -> None:
    """Refuse names that cannot be globals of a cell. Raises: ValueError naming them."""
    wrong = [
        name
        for name in names
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED_NAMES
    ]
    if wrong:
        raise ValueError(
            f"{what} must be Python identifiers, no keywords, and not one of {sorted(RESERVED_NAMES)}; got {wrong!r}"
        )


def checked_tools(tools: Mapping[str, Callable[..., Any]] | None) -> dict[str, Callable[..., Any]]:
    """A copy of the tools. Raises: ValueError, unless they are functions by names that will do."""
    accepted = "a dict from names to functions"
    refuse_unless(tools is None or isinstance(tools, Mapping), "tools", accepted, tools)  # pyright: ignore[reportUnnecessaryIsInstance]
    known = dict(tools or {})
    wrong = {name: tool for name, tool in known.items() if not callable(tool)}
    refuse_unless(not wrong, "tools", accepted, wrong)
    check_names(list(known), "tool names")
    return known


def checked_page_sources(sources: Mapping[str, PageSource] | None) -> dict[str, PageSource]:
    """A copy of the sources of pages. Raises: ValueError, unless they are functions by names."""
    accepted = "a dict from names to functions"
    refuse_unless(sources is None or isinstance(sources, Mapping), "page_sources", accepted, sources)  # pyright: ignore[reportUnnecessaryIsInstance]
    known = dict(sources or {})
    wrong = {name: source for name, source in known.items() if not (isinstance(name, str) and callable(source))}  # pyright: ignore[reportUnnecessaryIsInstance]
    refuse_unless(not wrong, "page_sources", accepted, wrong)
    return known


def checked_fields(fields: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """A copy of the output fields. Raises: ValueError, unless each has a name of its own that will do."""
    if fields is None:
        return None
    shaped = not isinstance(fields, (str, Mapping)) and all(isinstance(field, Mapping) for field in fields)  # pyright: ignore[reportUnnecessaryIsInstance]
    refuse_unless(shaped, "output_fields", "a list of dicts with a name, and perhaps a type, or None", fields)
    plain = [dict(field) for field in fields]
    names = [field.get("name") for field in plain]
    check_names(names, "output field names")
    if len(set(names)) != len(names):
        raise ValueError(f"output field names must differ from each other; got {names}")
    return plain
