"""A terminal's screen: the text that is left when all that was printed has been written over.

A progress bar goes back to the start of its line and writes over it a thousand times; a reader needs what stands there
in the end. Carriage returns, backspaces and the cursor movements of progress bars are applied. Colours and all other
control sequences are dropped. Every character counts as one column wide.
"""

from __future__ import annotations

import re

__all__ = ["Screen"]

_HELD = 2**16  # characters at the end that can still be written over
_LONGEST_SEQUENCE = 4096  # characters of a control sequence that has begun; what is longer is text
_FURTHEST = 500  # columns or rows that one sequence moves the cursor

_PARTS = re.compile(
    r"[^\r\n\x08\x1b]+|[\r\n\x08]|\x1b(?:\[(?P<count>[0-?]*)[ -/]*(?P<final>[@-~])"
    r"|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])?"
)
_BEGUN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|\][^\x07]*|[PX^_].*|[ -/]*)", re.DOTALL)


class _Row(list[str]):
    """The characters of a line."""

    overwritten = False

    def text(self) -> str:
        text = "".join(self)
        return text.rstrip(" ") if self.overwritten else text  # a progress bar is wiped out with blanks


class Screen:
    """Takes text piece by piece: `feed` returns what can no longer be written over, `rest` what still can.

    It takes time in proportion to the text, and holds a bounded part of it. For one thread at a time.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._begun = ""  # a control sequence, or a carriage return that may belong to a line's end
        self._plain: list[str] = []  # what can be written over, as long as the cursor has not gone back
        self._rows: list[_Row] = []  # the same once it has
        self._row = self._column = 0
        self._size = 0  # characters in either of the two

    def feed(self, text: str) -> str:
        """Write text at the cursor. Returns text that has moved out of reach."""
        text = self._complete(text)
        plain = "\r" not in text and "\b" not in text and "\x1b" not in text
        if not self._rows:
            if plain:
                return self._append(text)
            self._begin_rows()
        elif plain and len(text) >= _HELD and self._at_end():
            gone = self.rest()  # back to the quick way
            return gone + self._append(text)
        out: list[str] = []
        for part in _PARTS.finditer(text):
            found = part[0]
            if found[0] == "\x1b":
                self._obey(part["final"], part["count"])
            elif found == "\n":
                self._next_line()
            elif found == "\r":
                self._column = 0
            elif found == "\b":
                self._column = max(0, self._column - 1)
            else:
                for start in range(0, len(found), _HELD):
                    self._write(found[start : start + _HELD])
                    self._scroll(out)
            self._scroll(out)
        return "".join(out)

    def rest(self) -> str:
        """What could still have been written over. The screen is empty then."""
        text = "".join(self._plain) + "\n".join(row.text() for row in self._rows)
        self._clear()
        return text

    def _complete(self, text: str) -> str:
        """The text and what was held back before it, without an end that only more text can decide."""
        if self._begun:
            text, self._begun = self._begun + text, ""
        if text.endswith("\r"):
            text, self._begun = text[:-1], "\r"
        elif (at := text.rfind("\x1b")) >= 0 and len(text) - at <= _LONGEST_SEQUENCE and _BEGUN.fullmatch(text, at):
            text, self._begun = text[:at], text[at:]
        return text.replace("\r\n", "\n")

    def _append(self, text: str) -> str:
        self._plain.append(text)
        self._size += len(text)
        if self._size <= 2 * _HELD:
            return ""
        text = "".join(self._plain)
        self._plain, self._size = [text[-_HELD:]], _HELD
        return text[:-_HELD]

    def _begin_rows(self) -> None:
        self._rows = [_Row(line) for line in "".join(self._plain).split("\n")]
        self._plain = []
        self._row, self._column = len(self._rows) - 1, len(self._rows[-1])

    def _at_end(self) -> bool:
        return self._row == len(self._rows) - 1 and self._column == len(self._rows[-1])

    def _write(self, text: str) -> None:
        row = self._rows[self._row]
        before = len(row)
        column = self._column = min(self._column, before + _FURTHEST)
        if column > before:
            row.extend(" " * (column - before))
        elif column < before:
            row.overwritten = True
        row[column : column + len(text)] = text
        self._column += len(text)
        self._size += len(row) - before

    def _next_line(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self._rows):
            self._rows.append(_Row())
            self._size += 1

    def _obey(self, final: str | None, count: str | None) -> None:
        """Do what a control sequence says, if it is one that moves the cursor or wipes something out."""
        if final is None or count is None:
            return
        given = int(count[:9]) if count.isdecimal() else None
        many = min(given or 1, _FURTHEST)
        if final in "AF":
            self._row = max(0, self._row - many)
        elif final in "BE":
            self._row = min(len(self._rows) - 1, self._row + many)
        elif final == "C":
            self._column = max(self._column, min(self._column + many, _FURTHEST))
        elif final == "D":
            self._column = max(0, self._column - many)
        elif final == "G":
            self._column = many - 1
        elif (final == "K" and given in (None, 0, 2)) or (final == "J" and not given):
            row = self._rows[self._row]
            wiped = 0 if given == 2 else self._column
            self._size -= max(0, len(row) - wiped)
            del row[wiped:]
            if final == "J":
                self._size -= sum(len(below) + 1 for below in self._rows[self._row + 1 :])
                del self._rows[self._row + 1 :]
        if final in "EF":
            self._column = 0

    def _scroll(self, out: list[str]) -> None:
        """Let go of the lines that are too far up, and of the start of a line that is too long."""
        if self._size <= 2 * _HELD:
            return
        above = 0
        while self._size > _HELD and above < self._row:
            self._size -= len(self._rows[above]) + 1
            out.append(self._rows[above].text() + "\n")
            above += 1
        del self._rows[:above]
        self._row -= above
        cut = min(self._size - _HELD, self._column)
        if self._row == 0 and cut > 0:
            row = self._rows[0]
            out.append("".join(row[:cut]))
            del row[:cut]
            self._column -= cut
            self._size -= cut
