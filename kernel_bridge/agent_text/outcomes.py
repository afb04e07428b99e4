"""What the agent reads of a cell's outcome."""

from __future__ import annotations

from collections.abc import Mapping

from kernel_bridge.cells import CellOutcome, Death, RemoteFailure
from kernel_bridge.text import shorten, shorten_list

__all__ = ["death_text", "failure_text", "output_text"]

_MOST_WORDS, _LONGEST_WORD, _LONGEST_LIST = 100, 200, 20_000


def output_text(outcome: CellOutcome) -> str | None:
    """Of a cell that went well; None: it printed nothing."""
    return "\n".join([*filter(None, [outcome.text.rstrip("\n")]), *_note_of_losses(outcome)]) or None


def failure_text(outcome: CellOutcome, failure: RemoteFailure) -> str:
    """Of a cell that ended in an exception: its output, and the traceback."""
    note = failure.traceback
    if outcome.timed_out:
        note += f"\nThe cell {outcome.timed_out} and was interrupted. All variables are as they were at that moment."
    return _with_output(outcome.text, "\n".join([note, *_note_of_losses(outcome)]))


def death_text(outcome: CellOutcome, death: Death) -> str:
    """Of a cell under which the kernel died: its output, why the kernel died, and what its successor has."""
    if death.checkpointed:
        names = [shorten(name, _LONGEST_WORD) for name in death.restored if not name.startswith("_")]
        restored = f"Restored from before this cell: {shorten_list(names, _MOST_WORDS) or 'no names, there were none'}."
    else:
        restored = "No names were restored: checkpoints are off."
    lost = _by_reason(death.lost)
    return _with_output(
        outcome.text,
        f"The kernel died while this cell ran: {death.reason}. A new kernel was started. {restored} "
        f"Lost: {lost + '; and ' if lost else ''}whatever this cell had set, and all files in the working directory. "
        "The cell was not run again. " + (death.told or "What its tool calls did on the host stands."),
    )


def _note_of_losses(outcome: CellOutcome) -> list[str]:
    if not outcome.unkept:
        return []
    return [f"[Should the kernel die, this would be lost, because no checkpoint has it: {_by_reason(outcome.unkept)}]"]


def _by_reason(lost: Mapping[str, str]) -> str:
    """Names and why they are lost, in a text of bounded length: each reason once, after the names that it is for."""
    groups: dict[str, list[str]] = {}
    room = _LONGEST_LIST
    for count, (name, reason) in enumerate(lost.items()):
        name, reason = shorten(name, _LONGEST_WORD), shorten(" ".join(reason.split()), _LONGEST_WORD)
        room -= len(name) + 2 + (0 if reason in groups else len(reason) + 5)
        if room < 0:
            groups["there are too many to list"] = [f"{len(lost) - count:,} more"]
            break
        groups.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in groups.items())


def _with_output(text: str, note: str) -> str:
    text = text.rstrip("\n")
    return f"{text}\n{note}" if text else note
