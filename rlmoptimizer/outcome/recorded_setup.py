"""What the setup that is recorded in a run store says of its data sets. It holds digests of examples, never values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

__all__ = ["SPLITS", "branch_in", "digests_of", "split_sizes", "unit_limit"]

SPLITS: Final = ("train", "val", "test")


def split_sizes(setup: Mapping[str, Any]) -> dict[str, int]:
    """The number of examples of each split that there is."""
    return {split: len(digests_of(setup, split)) for split in SPLITS if setup[f"{split}set"] is not None}


def digests_of(setup: Mapping[str, Any], split: str) -> list[str]:
    """A digest of each example of a split, in order; []: there is no such split."""
    described = setup[f"{split}set"]
    return [] if described is None else described["digests"]


def branch_in(setup: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the optimization was branched from, as `steering.branches` writes it; None: it is no branch."""
    branch = None if setup is None else setup.get("branch")
    return cast("dict[str, Any]", branch) if isinstance(branch, dict) else None


def unit_limit(setup: Mapping[str, Any]) -> int:
    """The whole budget, in units. That of a branch which has not begun may become less."""
    if (branch := branch_in(setup)) is not None:
        return branch["limit"]
    sizes = split_sizes(setup)
    return setup["settings"]["max_iterations"] * sizes["train"] + sizes.get("val", 0)
