"""What people ask of an optimization: small files in a directory beside its store. Imports no DSPy.

The process that optimizes looks there; commands, pages and consoles write. Whoever can write beside the store can write
here. So what lies here is data: nothing is followed, large or odd things are passed over, and texts are checked.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from kernel_bridge.files.private_files import make_directory, make_file, open_new
from kernel_bridge.text import printable_line
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.store.file_lock import check_own
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["MOST_NOTE_CHARS", "Note", "Requests", "checked_note"]

logger = logging.getLogger(__name__)

MOST_NOTE_CHARS: Final = 8_000
_MOST_WAITING: Final = 20  # notes that wait for the agent's next turn
_MOST_BYTES: Final = 6 * MOST_NOTE_CHARS + 100  # of a note's file: JSON may write a character as \uXXXX
_MOST_NAMES: Final = 1_000  # that are looked at in the directory
_NOTE: Final = re.compile(r"note-\d{20}-[0-9a-f]{8}\.json")
_FLAGS: Final = ("pause", "stop", "branch")


@dataclass(frozen=True, slots=True)
class Note:
    """A person's words that no turn of the agent has had yet."""

    name: str  # of its file
    text: str


class Requests:
    """The requests to the optimization in one store. Any process; threads may share one."""

    def __init__(self, store_path: Path) -> None:
        """`store_path`: of the file of the store, which need not be there."""
        self.directory = store_path.with_suffix(".requests")
        self._store = store_path
        self._said: set[str] = set()  # what was logged; each kind of trouble once

    @classmethod
    def to(cls, store: StoreReader) -> Requests:
        """Those to the optimization in a store. Raises `InvalidSetup` when its agent has ended its work."""
        if store.outcome() is not None:
            ended = "has finished"
        elif store.agent_end() is not None:
            ended = "has ended its agent's work, and only its result is being measured"
        else:
            return cls(store.path)
        raise InvalidSetup(
            f"the optimization in {store.path} {ended}; to work on from one of its runs, make a branch: rlmoptimizer "
            "branch DIR RUN"
        )

    # asking

    def pause(self) -> None:
        """Ask the agent to wait after its turn. Raises `InvalidSetup` where this user cannot ask, as all of these."""
        self._raise_flag("pause")

    def unpause(self) -> None:
        """Let the agent go on. Raises `InvalidSetup` also where no pause is asked for."""
        if not self.pausing:
            raise InvalidSetup(f"no pause is asked of the optimization in {self._store}")
        with self._writing(), contextlib.suppress(FileNotFoundError):
            (self.directory / "pause").unlink()

    def stop(self) -> None:
        """Ask to stop and to take the best."""
        self._raise_flag("stop")

    def branch(self) -> None:
        """Ask to stop, and to go on with the branch that was prepared."""
        self._raise_flag("branch")

    def refusal(self) -> str | None:
        """Why this user can ask nothing; None: nothing stands against it. Changes nothing."""
        try:
            owner = self._store.stat().st_uid
        except OSError as error:
            return f"nothing can be asked of the optimization in {self._store}: {error.strerror}"
        if os.name == "posix" and owner != os.geteuid():
            return f"the optimization in {self._store} belongs to another user (number {owner}), who alone can steer it"
        if not os.access(self._store.parent, os.W_OK):
            return f"nothing can be asked of the optimization in {self._store}: its directory cannot be written to"
        return None

    def check(self, *, note: bool = False) -> None:
        """Raise `InvalidSetup` where this user cannot ask, or with `note` where too many notes wait for another one."""
        with self._writing():
            if note:
                self._check_room()

    def note(self, text: str) -> None:
        """Leave words for the agent's next turn. Raises `InvalidSetup` also for a text that cannot be one."""
        data = json.dumps({"text": checked_note(text)}).encode()
        with self._writing():
            self._check_room()
            name = f"note-{time.time_ns():020}-{secrets.token_hex(4)}.json"
            new = self.directory / f"{name}.new"
            with open(open_new(new), "wb") as file:
                file.write(data)
            new.replace(self.directory / name)

    # looking

    @property
    def pausing(self) -> bool:
        """Whether a pause is wanted."""
        return self._has_flag("pause")

    @property
    def stopping(self) -> bool:
        """Whether the best is to be taken now."""
        return self._has_flag("stop")

    @property
    def branching(self) -> bool:
        """Whether a branch that was prepared is to be gone on with."""
        return self._has_flag("branch")

    def notes(self) -> list[Note]:
        """The notes that wait, oldest first, a bounded number. What is no note is removed or passed over."""
        notes: list[Note] = []
        for name in self._note_names():
            if len(notes) == _MOST_WAITING:
                break
            try:
                notes.append(Note(name, _read_note(self.directory / name)))
            except (OSError, ValueError, RecursionError) as error:
                self._say("note", f"{name} is no note and is not read: {error}")
                self.remove(name)
        return notes

    def note_texts(self) -> list[str]:
        """The texts of the notes that wait, for whoever only shows them: what is no note stays where it is."""
        texts: list[str] = []
        for name in self._note_names():
            with contextlib.suppress(OSError, ValueError, RecursionError):  # also: taken in the meantime
                texts.append(_read_note(self.directory / name))
        return texts[:_MOST_WAITING]

    def take_notes(self) -> list[str]:
        """The texts of the notes that wait, which are removed."""
        notes = self.notes()
        for note in notes:
            self.remove(note.name)
        return [note.text for note in notes]

    def remove(self, name: str) -> None:
        """Remove the file of a note, as far as that can be done."""
        with contextlib.suppress(OSError):
            (self.directory / name).unlink()

    def clear(self) -> None:
        """Remove the directory with all that was asked: the optimization has ended. What is not ours stays."""
        if not self._is_usable():
            return
        for name in (*_FLAGS, *self._names()):
            if name in _FLAGS or _NOTE.fullmatch(name.removesuffix(".new")):
                self.remove(name)
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    # the directory

    def _raise_flag(self, name: str) -> None:
        with self._writing(), contextlib.suppress(FileExistsError):  # two may ask at once
            if not self._has_flag(name):  # to make it anew would end a pause for a moment
                make_file(self.directory / name, b"")

    def _has_flag(self, name: str) -> bool:
        if not self._is_usable():
            return False
        try:
            check_own((self.directory / name).lstat(), self.directory / name)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._say(name, f"{name} is passed over: {error.strerror}")
            return False
        return True

    def _is_usable(self) -> bool:
        """Whether the directory is there, and of this user or of the owner of the store's directory."""
        try:
            self._check(self.directory.lstat())
        except FileNotFoundError:
            return False
        except (OSError, InvalidSetup) as error:
            self._say("directory", f"nothing in {self.directory} is heeded: {error}")
            return False
        return True

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISDIR(found.st_mode):
            raise InvalidSetup(f"{self.directory} is no directory; remove it")
        if os.name == "posix" and found.st_uid not in (os.geteuid(), self.directory.parent.stat().st_uid):
            raise InvalidSetup(f"{self.directory} belongs to another user (number {found.st_uid}); remove it")

    @contextmanager
    def _writing(self) -> Generator[None]:
        if (refusal := self.refusal()) is not None:
            raise InvalidSetup(refusal)
        try:
            with contextlib.suppress(FileExistsError):
                make_directory(self.directory)
            self._check(self.directory.lstat())
            yield
        except OSError as error:
            raise InvalidSetup(f"nothing can be asked of the optimization in {self._store}: {error}") from error

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.directory) as entries:
                return [entry.name for entry in itertools.islice(entries, _MOST_NAMES)]
        except OSError:
            return []

    def _check_room(self) -> None:
        if len(self._note_names()) >= _MOST_WAITING:
            raise InvalidSetup(
                f"{_MOST_WAITING} notes wait for the agent's next turn already; it takes them when it comes to that"
            )

    def _note_names(self) -> list[str]:
        if not self._is_usable():
            return []
        return sorted(name for name in self._names() if _NOTE.fullmatch(name))

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("Requests of people: %s (said once)", printable_line(text))


def checked_note(text: str) -> str:
    """The text of a note without white space around it. Raises `InvalidSetup` for one that cannot be told."""
    text = text.strip()
    if not text:
        raise InvalidSetup("the note is empty; say what the agent should know")
    if len(text) > MOST_NOTE_CHARS:
        raise InvalidSetup(f"the note has {len(text):,} characters, and at most {MOST_NOTE_CHARS:,} are taken")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidSetup("the note is not valid Unicode; write it in UTF-8") from None
    return text


def _read_note(path: Path) -> str:
    """Raises OSError, ValueError or RecursionError for what is no note."""
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    with open(os.open(path, flags), "rb") as file:
        check_own(os.fstat(file.fileno()), path)
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES:,} bytes")
    document: Any = json.loads(data.decode())
    text = cast("dict[str, Any]", document).get("text") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise ValueError("it has no text")
    return checked_note(text)
