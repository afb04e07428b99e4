"""Entries of DSPy's histories that are made small while somebody may be reading them."""

from __future__ import annotations

from typing import Any

from rlmoptimizer.lms.root_calls import RootCalls


class Watched(dict[str, Any]):
    """An entry that a reader finds whole after every change."""

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        assert self["messages"] or self["prompt"]


def test_an_entry_always_tells_of_a_request() -> None:
    calls = RootCalls()
    entries = [Watched(prompt=None, messages=[{"role": "user", "content": "x" * 9}], request={}) for _ in range(5)]
    for entry in entries:
        calls.history.append(entry)
    assert [entry["request"] for entry in entries] == [None, None, {}, {}, {}]
    assert "left out here" in entries[0]["messages"][0]["content"]
