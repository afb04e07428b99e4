"""The command that says what this machine can give an agent's kernel."""

from __future__ import annotations

from dataclasses import asdict

from kernel_bridge.text import printable
from rlmoptimizer.command_line.output import write_json, write_lines
from rlmoptimizer.command_line.parameters import AsJson

__all__ = ["probe"]


def probe(as_json: AsJson = False) -> None:
    """What can confine an agent's kernel on this machine, guarantee by guarantee, found by a trial."""
    from kernel_bridge.confine import probe as probe_machine

    found = probe_machine()
    if as_json:
        write_json({**asdict(found), "notes": list(found.notes)})
    else:
        write_lines(printable(found.table(), None).split("\n"))
