"""A stored run as a Jupyter notebook: reasoning, code and output turn by turn, and a first cell that replays it."""

# nbformat's functions have no types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import nbformat
from nbformat import v4

from kernel_bridge.text import printable
from rlmoptimizer.outcome.optimization_result import OptimizationResult
from rlmoptimizer.show.notebook.markdown_text import as_written
from rlmoptimizer.show.notebook.turn_record import ERROR_MARK, TurnRecord, turn_records
from rlmoptimizer.show.whole_file import write_whole
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["notebook_of", "write_notebook"]

_FIRST: Final = """\
# CAUTION: this notebook replays code that an LLM agent wrote. Treat it as untrusted.
# Run as it stands, the code of the cells marked %%turn runs in a separate confined kernel, without the network and
# without your files, and not in this notebook's process. A cell from which you remove the %%turn line runs with all of
# your rights. connect(..., confinement="auto") or "off" lowers the confinement: pass that only for code you trust.
#
# The tools answer from the stored run, which is only read: no LM is asked, and nothing is paid.
from rlmoptimizer.show.notebook.replay import connect

replay = connect({path})
globals().update(replay.tools | replay.variables)  # for cells of your own; `%%turn` alone looks into the agent's kernel
replay"""
_NO_OUTPUT: Final = "(no output - did you forget to print?)"  # which DSPy tells the agent
# Characters that make code read as other code than it is, or that no file can hold; in a string they mean the same.
# A form feed is white space in code.
_HIDING: Final = (*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F),
                  *range(0x2066, 0x206A), *range(0xD800, 0xE000))  # fmt: skip
_VISIBLE: Final = {code: f"\\u{code:04x}" for code in _HIDING}
_TRACEBACK: Final = "Traceback (most recent call last):"
_MARKS: Final[Mapping[str, str]] = {
    "died": "**The kernel died in this cell.** A new one went on with the variables from before it. A replay does not "
    "run the code again; it ends its own kernel.",
    "cut": "**The process ended in this cell.** It was not run again; a replay does not run it either.",
    "not_run": "**This code was not run.**",
}


def notebook_of(store: StoreReader) -> nbformat.NotebookNode:
    """A valid notebook (nbformat 4) of the run in a store, as far as it has come. Raises `StoreCorrupt`.

    It holds nothing of val or test but what the agent was told: scores and counts.
    """
    notebook = v4.new_notebook(
        cells=list(_cells(store)),
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
            "rlmoptimizer": {"store": store.path.name, "finished": store.outcome() is not None},
        },
    )
    nbformat.validate(notebook)
    return notebook


def write_notebook(store: StoreReader, path: Path) -> None:
    """Write the notebook to a file, which only its owner may read: it holds examples of train.

    A file of this name is replaced once the new one is whole.

    Raises:
        InvalidSetup: no file can be written there, or it is the store itself.
        StoreCorrupt: the store cannot be read.
    """
    made = (f"{nbformat.writes(one)}\n" for one in map(notebook_of, [store]))
    write_whole(made, path, store.path, "notebook", "run.ipynb")


def _cells(store: StoreReader) -> Iterator[nbformat.NotebookNode]:
    # No text of the store stands in code of ours but the path, as a literal.
    yield v4.new_code_cell(_FIRST.format(path=repr(str(store.path.absolute()))), id="connect")
    yield _markdown("head", _head(store))
    notes = _notes(store)
    deaths = {event.data.get("turn"): str(event.data.get("reason", "")) for event in store.events("KernelDied")}
    turns = turn_records(store)
    for turn in turns:
        yield from _note_cells(notes.pop(turn.number, []), turn.number)
        yield from _turn_cells(turn, deaths.get(turn.number, ""))
    for before in sorted(notes):
        yield from _note_cells(notes[before], before)
    yield _markdown("end", _end(store))


def _head(store: StoreReader) -> str:
    return (
        f"# {as_written(store.path.stem)}\n\n"
        "What an LLM agent did to optimize the prompts of a DSPy program, turn by turn: its reasoning, its code, and "
        "what it got. **All of that is its text and its code, not that of a person.** The first cell says how it is "
        "run again."
    )


def _end(store: StoreReader) -> str:
    if store.outcome() is None:
        return "**The optimization had not ended when this notebook was written.**"
    return f"**Result:** {as_written(OptimizationResult.of(store).verdict_text)}"


def _notes(store: StoreReader) -> dict[int, list[str]]:
    """The notes of people, by the turn before which the agent got them."""
    notes: dict[int, list[str]] = {}
    for event in store.events("NoteGiven"):
        notes.setdefault(int(event.data["before_turn"]), []).append(str(event.data["text"]))
    return notes


def _note_cells(notes: list[str], turn: int) -> Iterator[nbformat.NotebookNode]:
    for number, note in enumerate(notes, start=1):
        text = f"**Note of a person, before turn {turn}:**\n\n{as_written(note)}"
        yield _markdown(f"note-{turn}-{number}", text, turn, "note")


def _turn_cells(turn: TurnRecord, death: str) -> Iterator[nbformat.NotebookNode]:
    seconds = "" if turn.seconds is None else f" ({turn.seconds:.1f} s)"
    parts = [f"## Turn {turn.number}{seconds}", as_written(turn.reasoning)]
    if turn.ended in _MARKS:
        mark = _MARKS[turn.ended]
        parts.append(f"{mark} Why: {as_written(death)}." if death and turn.ended == "died" else mark)
    yield _markdown(f"turn-{turn.number}", "\n\n".join(filter(None, parts)), turn.number)
    if not turn.code.strip() and turn.output is None:
        return
    tags = {"error": ["raises-exception"], "ok": [], "submitted": ["submitted"]}.get(turn.ended, [turn.ended])
    yield v4.new_code_cell(
        f"%%turn {turn.number}\n{_code_shown(turn.code)}",
        id=f"turn-{turn.number}-code",
        execution_count=turn.number,
        metadata={
            "tags": [tag.replace("_", "-") for tag in tags],
            "rlmoptimizer": {"turn": turn.number, "ended": turn.ended},
        },
        outputs=_outputs(turn),
    )


def _code_shown(code: str) -> str:
    return code.replace("\r\n", "\n").replace("\r", "\n").translate(_VISIBLE)


def _outputs(turn: TurnRecord) -> list[nbformat.NotebookNode]:
    """What the agent got, as text that steers nothing."""
    output = "" if turn.output in (None, _NO_OUTPUT) else printable(turn.output or "", None)
    if not output:
        return []
    if not output.startswith(ERROR_MARK):
        return [_stream(output)]
    printed, error = _split(output[len(ERROR_MARK) :])
    name, message = ("KernelDied", error) if turn.ended == "died" else _name_and_message(error)
    shown = v4.new_output("error", ename=name, evalue=message, traceback=error.split("\n"))
    return [*([_stream(printed)] if printed else []), shown]


def _split(text: str) -> tuple[str, str]:
    """What was printed before an error, and the error."""
    begin = 0 if text.startswith(_TRACEBACK) else text.rfind(f"\n{_TRACEBACK}") + 1
    return text[:begin], text[begin:]


def _name_and_message(error: str) -> tuple[str, str]:
    """Of the last exception in a traceback: the agent may be told more below it."""
    found = list(re.finditer(r"(?m)^([A-Za-z_]\w*)(?:: (.*))?$", error))
    return (found[-1][1], found[-1][2] or "") if found else ("Error", error)


def _stream(text: str) -> nbformat.NotebookNode:
    return v4.new_output("stream", name="stdout", text=text if text.endswith("\n") else f"{text}\n")


def _markdown(cell_id: str, text: str, turn: int | None = None, tag: str | None = None) -> nbformat.NotebookNode:
    metadata: dict[str, Any] = {} if tag is None else {"tags": [tag]}
    if turn is not None:
        metadata["rlmoptimizer"] = {"turn": turn}
    return v4.new_markdown_cell(text, id=cell_id, metadata=metadata)
