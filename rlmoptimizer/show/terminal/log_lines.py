"""Log lines and warnings of any library, made safe to show while a block lasts.

A library logs what an LM or a kernel wrote as it came, with escapes that steer a terminal and of any length. The user's
loggers, handlers, formatters and filters stay as they are. Watched are the method by which every handler gets its
records, also one that is added meanwhile, and the functions that Python calls for a warning and for an exception that
ends a thread. Where nobody has set up logging, Python writes bare messages: ours then say where they come from.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

from kernel_bridge.text import make_showable, printable, printable_line
from rlmoptimizer.show.terminal.figures import WHO

__all__ = ["printable_logs"]

_OURS: Final = ("rlmoptimizer", "kernel_bridge")
_PLAIN: Final = (str, int, float, bool, type(None))
_BURST_CHARS: Final = 1_000_000  # of one library's lines at once, on one handler
_CHARS_A_SECOND: Final = 5_000.0  # and in the long run
_LINE_COST: Final = 100  # characters; a flood of empty lines is one too
_EXTRA_CHARS: Final = 2_000  # of a text that is beside the message, such as the name of the logger


@contextmanager
def printable_logs(clock: Callable[[], float] = time.monotonic) -> Generator[None]:
    """Within the block, what log handlers get is printable and bounded, in the whole process.

    Of one record's message, traceback and stack, head and tail are kept; of one library's records on one handler, a
    burst of a million characters and 5,000 a second. What is left out is said. Handlers that write files get everything
    as it came. Blocks may nest and overlap on several threads: the last one to end takes the watch off.
    """
    _watch.enter(clock)
    try:
        yield
    finally:
        _watch.leave()


class _Flood:
    """How much one library may still write by one handler."""

    def __init__(self, handler: logging.Handler | None, now: float) -> None:
        self.handler = handler  # None: warnings have none
        self.left_out = 0
        self._room = float(_BURST_CHARS)
        self._at = now

    def has_room(self, chars: int, now: float) -> bool:
        self._room = min(float(_BURST_CHARS), self._room + (now - self._at) * _CHARS_A_SECOND)
        self._at = now
        cost = chars + _LINE_COST
        # After a gap there must be room for many lines, else there would be a note between every two.
        if self._room < (cost if not self.left_out else max(cost, _BURST_CHARS / 10)):
            return False
        self._room -= cost
        return True


class _Place:
    """A function of the standard library that is replaced for a while by one that calls it."""

    def __init__(self, owner: Any, name: str, ours: Callable[..., Any]) -> None:
        self._owner = owner
        self._name = name
        self._ours = ours
        self._is_within = False  # somebody else has wrapped ours and not taken it off
        self.before: Callable[..., Any] = getattr(owner, name)

    def put(self) -> None:
        current = getattr(self._owner, self._name)
        if current != self._ours and not self._is_within:
            self.before = current
            setattr(self._owner, self._name, self._ours)

    def take_off(self) -> None:
        self._is_within = getattr(self._owner, self._name) != self._ours
        if not self._is_within:
            setattr(self._owner, self._name, self.before)


class _Watch:
    """The one watch of this process, on while at least one block lasts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._clock: Callable[[], float] = time.monotonic
        self._floods: dict[tuple[int, str], _Flood] = {}

        # A function, not a bound method: it is to be a method of the handler.
        def handle(handler: logging.Handler, record: logging.LogRecord) -> Any:
            return self._record(handler, record)

        self._handle = _Place(logging.Handler, "handle", handle)
        self._format = _Place(warnings, "formatwarning", self._warning)
        self._except = _Place(threading, "excepthook", self._uncaught)
        self._places = (self._handle, self._format, self._except)

    def enter(self, clock: Callable[[], float]) -> None:
        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                self._clock = clock
                for place in self._places:
                    place.put()

    def leave(self) -> None:
        with self._lock:
            if self._blocks > 1:
                self._blocks -= 1
                return
            floods = dict(self._floods)
            self._floods.clear()
        try:
            for (_, library), flood in floods.items():
                if flood.left_out and flood.handler is not None:
                    self._handle.before(flood.handler, _note(library, flood.left_out))
        finally:  # a foreign handler may raise
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    for place in self._places:
                        place.take_off()

    def _record(self, handler: logging.Handler, record: logging.LogRecord) -> Any:
        if not self._blocks or _writes_a_file(handler):
            return self._handle.before(handler, record)
        try:
            shown = _shown(record)
            if handler is logging.lastResort and record.name.partition(".")[0] in _OURS:
                shown = _introduced(shown)
        except Exception as error:  # noqa: BLE001 - the objects in a record are foreign code
            text = f"(a record that cannot be shown, {type(error).__name__})"
            shown = logging.LogRecord("logging", record.levelno, record.pathname, record.lineno, text, None, None)
        chars = len(_message(shown)) + len(shown.exc_text or "") + len(shown.stack_info or "")
        fits, missing = self._admit(handler, shown.name, chars)
        if missing:
            self._handle.before(handler, _note(shown.name, missing))
        return self._handle.before(handler, shown) if fits else False

    def _warning(self, *args: Any, **kwargs: Any) -> str:
        text = self._format.before(*args, **kwargs)
        if not self._blocks:
            return text
        shown = printable(text)
        fits, missing = self._admit(None, "warnings", len(shown))
        return (f"{_missing_text('warnings', missing)}\n" if missing else "") + (shown if fits else "")

    def _uncaught(self, args: Any) -> None:
        """Python prints the exception that ends a thread as it is."""
        if self._blocks and isinstance(args.exc_value, BaseException):
            make_showable(args.exc_value)
        self._except.before(args)

    def _admit(self, handler: logging.Handler | None, name: str, chars: int) -> tuple[bool, int]:
        """Whether there is room for one more, and how many to report as left out (see `_missing_text`)."""
        now, key = self._clock(), (id(handler), name.partition(".")[0])
        with self._lock:
            flood = self._floods.setdefault(key, _Flood(handler, now))
            if flood.has_room(chars, now):
                missing, flood.left_out = flood.left_out, 0
                return True, missing
            flood.left_out += 1
            return False, -1 if flood.left_out == 1 else 0


def _missing_text(library: str, missing: int) -> str:
    if missing < 0:
        return f"{library} logs too much: further lines are left out, until there are fewer"
    return f"{missing:,} lines of {library} were left out"


def _note(name: str, missing: int) -> logging.LogRecord:
    library = printable_line(name.partition(".")[0] or "root", 100)
    return logging.LogRecord(name, logging.WARNING, __file__, 0, _missing_text(library, missing), None, None)


def _writes_a_file(handler: logging.Handler) -> bool:
    """Whether it writes to a file that is not a terminal: nobody is shown that."""
    if not isinstance(handler, logging.FileHandler):
        return False
    isatty = getattr(cast("Any", handler).stream, "isatty", None)
    return not (callable(isatty) and isatty())


def _shown(record: logging.LogRecord) -> logging.LogRecord:
    """The record itself if all of it is safe to show, else a copy that is."""
    changed: dict[str, Any] = {
        name: printable_line(value, _EXTRA_CHARS)
        for name, value in vars(record).items()
        if isinstance(value, str) and name not in ("msg", "exc_text", "stack_info", "message") and not _is_fit(value)
    }
    changed |= _message_shown(record)
    for name in ("stack_info", "exc_text"):
        value: Any = getattr(record, name)
        if value and not _is_fit(str(value)):
            changed[name] = printable(str(value))
    if record.exc_info and record.exc_info[0] is not None:
        trace = record.exc_text or "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        if not _is_fit(trace):
            # With the exception a formatter would make the text again.
            changed |= {"exc_info": None, "exc_text": printable(trace)}
    if not changed:
        return record
    shown = copy.copy(record)
    vars(shown).update(changed)
    return shown


def _introduced(record: logging.LogRecord) -> logging.LogRecord:
    """With the name of the optimizer in front, as every other line of a compile has it."""
    named = copy.copy(record)
    named.msg, named.args = f"{WHO}: {record.levelname.lower()}: {_message(record)}", None
    return named


def _message_shown(record: logging.LogRecord) -> dict[str, Any]:
    """The attributes to change for the message to be safe to show."""
    message: object = record.msg
    if isinstance(message, Mapping):  # structured logging, whose formatter reads the fields
        fields = cast("Mapping[Any, Any]", message)
        unfit = {key: printable(each) for key, each in fields.items() if isinstance(each, str) and not _is_fit(each)}
        return {"msg": {**fields, **unfit}} if unfit else {}
    text = _message(record)
    given: Any = record.args
    values = tuple(cast("Any", given).values()) if isinstance(given, Mapping) else given or ()
    # Any other object could give another text the next time.
    is_plain = isinstance(message, str) and all(type(value) in _PLAIN for value in values)
    if is_plain and _is_fit(text):
        return {}
    return {"msg": printable(text), "args": None}


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - wrong arguments, or their own `__str__`; logging would print them as is
        where = f"{record.pathname}:{record.lineno}"
        return f"{str(record.msg)[:_EXTRA_CHARS]} (cannot be formatted, {type(error).__name__}; logged at {where})"


def _is_fit(text: str) -> bool:
    return printable(text) == text


_watch: Final = _Watch()
