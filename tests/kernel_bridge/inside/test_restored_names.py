"""What a kernel tells of a restore: within bounds, however many names there are and whatever they are."""

from __future__ import annotations

import json

import pytest

from kernel_bridge.inside.restored_names import MOST_BYTES, told_names


@pytest.mark.parametrize("name", ["n", "name", "\ud800" * 9, "é" * 40, "\0" * 40, '"', "x" * 300_000])
def test_names_beyond_number_are_told_in_bounds(name: str) -> None:
    names = [f"{name}{number}" for number in range(30_000 if len(name) < 100 else 3)]
    lost = dict.fromkeys(names, "why\udfff")
    for restored, reasons in ((names, {}), ([], lost), (names, lost)):
        told = told_names(restored, reasons)
        assert len(json.dumps({"status": "ok", "kernel_bridge": told})) < MOST_BYTES
        for said, known in ((told["restored"], restored), (list(told["lost"]), list(reasons))):
            assert len(said) == len(known) or said[-1] == f"({len(known) - len(said) + 1:,} more)"


def test_few_names_are_told_as_they_are() -> None:
    assert told_names(["a", "b"], {"c": "why"}) == {"restored": ["a", "b"], "lost": {"c": "why"}}
