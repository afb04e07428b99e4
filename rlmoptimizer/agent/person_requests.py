"""What a person asks of the agent while it works: to pause, to heed a note, to stop, or to give way to a branch."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from rlmoptimizer.agent.stopping import Ending, WorkStop
from rlmoptimizer.events import Emitter, NoteGiven, StopRequested, WorkPaused, WorkUnpaused
from rlmoptimizer.lms.person_notes import PersonNote
from rlmoptimizer.steering.branches import branch_of
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["PersonRequests"]

logger = logging.getLogger(__name__)

_MOST_NOTES: Final = 100  # that one optimization takes; they are all in every request
_MOST_CHARS: Final = 100_000  # of all of them
_POLL_SECONDS: Final = 0.2  # how often a pause looks whether it is over


class PersonRequests:
    """Those of one compile. `ending` may be called from any thread, all else from the one that compiles."""

    def __init__(self, requests: Requests, store: StoreReader, emitter: Emitter) -> None:
        self._requests = requests
        self._store = store.path
        self._emitter = emitter
        self._turn = len(store.iterations())  # that was begun last
        self._notes = [
            PersonNote(record.data["before_turn"], record.data["text"], 0) for record in store.events("NoteGiven")
        ]
        self._is_full = False
        self._lock = threading.Lock()  # of the next one
        self._ending: Ending | None = None  # the first one stays

    @property
    def notes(self) -> tuple[PersonNote, ...]:
        """All that were given, oldest first; those of earlier processes too."""
        return tuple(self._notes)

    def ending(self) -> Ending | None:
        """Why a person wants the work to end; None: nobody does."""
        asked = self._ending or self._asked()
        if asked is None:
            return None
        with self._lock:
            is_new, self._ending = self._ending is None, self._ending or asked
        if is_new and asked.reason == "stopped_by_person":
            self._emitter.emit(StopRequested(self._turn))
        return self._ending

    @property
    def is_branching(self) -> bool:
        """Whether a branch is to be gone on with."""
        ending = self._ending or self._asked()
        return ending is not None and ending.reason == "branched"

    def wait_while_paused(self, before_turn: int, stop: WorkStop) -> None:
        """Wait as long as a pause is wanted, nobody wants an end, and the gate is open. That time is not counted."""
        if not self._is_waiting():
            return
        self._emitter.emit(WorkPaused(before_turn))
        began = time.monotonic()
        with stop.clock_stopped():
            while self._is_waiting() and not stop.gate.closed.wait(_POLL_SECONDS):
                pass
        self._emitter.emit(WorkUnpaused(before_turn, time.monotonic() - began))

    def begin_turn(self, turn: int, entries: int) -> None:
        """Take the notes that wait for this turn; the REPL history has so many entries."""
        self._turn = turn
        for note in self._requests.notes():
            chars = sum(len(given.text) for given in self._notes) + len(note.text)
            if len(self._notes) < _MOST_NOTES and chars <= _MOST_CHARS:
                self._emitter.emit(NoteGiven(turn, note.text))  # stored before the agent has it
                self._notes.append(PersonNote(turn, note.text, entries))
            elif not self._is_full:
                self._is_full = True
                logger.warning(
                    "A note is not given to the agent: it has %d of them, and at most %d, or %d characters, are taken",
                    len(self._notes),
                    _MOST_NOTES,
                    _MOST_CHARS,
                )
            self._requests.remove(note.name)

    def _is_waiting(self) -> bool:
        return self._requests.pausing and self.ending() is None

    def _asked(self) -> Ending | None:
        if self._requests.branching:
            if branch_of(self._store) is not None:
                return Ending("branched", "a person has made a branch of the optimization, which goes on there")
            self._requests.remove("branch")
        if self._requests.stopping:
            return Ending("stopped_by_person", "a person has asked to stop and to take the best")
        return None
