"""The command line, called in this process: what it wrote, and its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Command", "Written"]


@dataclass(frozen=True, slots=True)
class Written:
    """What one call wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        assert (self.code, self.err) == (0, "")
        return self.out.splitlines()

    def refused(self, code: int) -> str:
        """The one line of an error."""
        assert (self.code, self.out) == (code, "")
        assert self.err.startswith("rlmoptimizer: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("rlmoptimizer: ").rstrip("\n")


Command = Callable[..., Written]
"""`command("runs", directory, "--json", columns=60)`: on a terminal of so many columns, without colours."""
