"""Log lines and warnings of any library: printable and bounded on what people look at, untouched in files."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.logging import RichHandler

from rlmoptimizer.show.terminal.log_lines import printable_logs

EVIL = "\x1b]0;OWNED\x07\x9b31m\u202e\x00\ud800"


class Evil:
    """What logs in a library format lazily."""

    def __str__(self) -> str:
        return EVIL

    __repr__ = __str__


class Turncoat:
    """Harmless as long as it is only looked at once."""

    def __init__(self) -> None:
        self.asked = 0

    def __str__(self) -> str:
        self.asked += 1
        return "fine" if self.asked == 1 else EVIL


class Broken:
    def __str__(self) -> str:
        raise ValueError(EVIL)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def library(stream: io.StringIO) -> Iterator[logging.Logger]:
    logger = logging.getLogger("a_library.part")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("\x1b[31m%(levelname)s\x1b[0m %(name)s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)
    logger.propagate = True


def written(stream: io.StringIO) -> str:
    """What was written, without the colours that are the formatter's own."""
    return stream.getvalue().replace("\x1b[31m", "").replace("\x1b[0m", "")


def is_clean(text: str) -> bool:
    return not any(mark in text for mark in ("\x1b", "\x07", "\x9b", "\u202e", "\x00", "\ud800"))


def chained() -> tuple[Any, ...]:
    try:
        try:
            raise ValueError(EVIL)
        except ValueError as error:
            raise RuntimeError(f"again {EVIL}") from error
    except RuntimeError:
        return sys.exc_info()


WAYS: dict[str, Callable[[logging.Logger], None]] = {
    "text": lambda logger: logger.error(EVIL),
    "argument": lambda logger: logger.error("%s and %r", EVIL, 1),
    "mapping": lambda logger: logger.error("%(it)s", {"it": EVIL}),
    "object": lambda logger: logger.error("%s %r", Evil(), [Evil()]),
    "message": lambda logger: logger.error(Evil()),
    "turncoat": lambda logger: logger.error("%s", Turncoat()),
    "exception": lambda logger: logger.error(RuntimeError(EVIL)),
    "structured": lambda logger: logger.error({"event": EVIL, "number": 3}),
    "broken": lambda logger: logger.error(f"{EVIL} %s", Broken()),
    "too few arguments": lambda logger: logger.error(f"{EVIL} %d", EVIL),
    "traceback": lambda logger: logger.error("failed", exc_info=chained()),
    "stack": lambda logger: logger.error("here", stack_info=True, extra={"stack_info_": EVIL}),
    "beside": lambda logger: logger.error("%s", 1, extra={"user": EVIL}),
    "a name": lambda logger: logger.getChild(EVIL).error("named"),
}


@pytest.mark.parametrize("way", WAYS)
def test_however_a_library_logs_it_what_is_written_is_printable(
    way: str, library: logging.Logger, stream: io.StringIO
) -> None:
    layout = "%(levelname)s %(name)s %(message)s %(user)s"
    library.handlers[0].setFormatter(logging.Formatter(layout, defaults={"user": ""}))
    with printable_logs():
        WAYS[way](library)
    assert "ERROR a_library.part" in stream.getvalue()
    assert "--- Logging error ---" not in stream.getvalue()
    assert is_clean(stream.getvalue())


def test_a_formatters_own_colours_stay_and_what_is_fit_reaches_handlers_as_it_is(
    library: logging.Logger, stream: io.StringIO
) -> None:
    seen: list[logging.LogRecord] = []
    library.handlers[0].addFilter(lambda record: seen.append(record) is None)
    with printable_logs():
        library.error("%s is %d", "one", 1)
        library.error("two\t%s\n", EVIL)
    assert stream.getvalue().count("\x1b[31mERROR\x1b[0m a_library.part ") == 2
    assert seen[0].args == ("one", 1)
    assert is_clean(written(stream))


def test_a_file_gets_what_was_logged(library: logging.Logger, stream: io.StringIO, tmp_path: Path) -> None:
    file = logging.FileHandler(tmp_path / "log.txt", encoding="utf-8", errors="surrogatepass")
    for handlers in ([file, *library.handlers], [*library.handlers, file]):
        library.handlers[:] = handlers
        with printable_logs():
            library.error("%s", Evil(), exc_info=chained())
    library.removeHandler(file)
    file.close()
    kept = (tmp_path / "log.txt").read_text(encoding="utf-8", errors="surrogatepass")
    assert kept.count(f"ERROR:{EVIL}".removeprefix("ERROR:")) == 6
    assert is_clean(written(stream))


def test_a_handler_that_is_added_meanwhile_is_watched_too_and_one_with_a_way_of_its_own() -> None:
    logger = logging.getLogger("late_library")
    logger.propagate = False
    stream, told = io.StringIO(), []

    class Forwards(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    pretty = RichHandler(console=Console(file=stream, width=200), rich_tracebacks=True)
    with printable_logs():
        logger.handlers[:] = [pretty, Forwards()]
        logger.error("[bold]%s[/]", EVIL, exc_info=chained())
    logger.handlers.clear()
    logger.propagate = True
    assert "[bold]" in stream.getvalue()
    assert "again" in stream.getvalue()
    assert is_clean(stream.getvalue())
    assert is_clean(told[0])


def test_one_record_is_bounded_and_head_and_tail_are_kept(library: logging.Logger, stream: io.StringIO) -> None:
    with printable_logs():
        library.error("head %s tail", "x" * 60_000_000)
        try:
            raise ValueError("first " + "y" * 1_000_000 + " last")
        except ValueError:
            library.exception("failed")
    assert len(stream.getvalue()) < 40_000
    for kept in ("head x", "x tail", "y last", "characters left out"):
        assert kept in stream.getvalue()


def test_a_flood_of_one_library_is_cut_said_and_keeps_no_other_from_logging(
    library: logging.Logger, stream: io.StringIO
) -> None:
    other = logging.getLogger("another_library")
    other.propagate = False
    other.addHandler(library.handlers[0])
    clock = Clock()
    with printable_logs(clock):
        for _ in range(400):
            library.error("x" * 7000)
        other.error("still here")
        assert stream.getvalue().count("a_library logs too much") == 1
        clock.now += 60.0
        library.error("later")
        for _ in range(400):
            library.error("x" * 7000)
    other.handlers.clear()
    other.propagate = True
    lines = stream.getvalue().splitlines()
    assert len(stream.getvalue()) < 1_500_000
    assert "still here" in stream.getvalue()
    told = [number for number, line in enumerate(lines) if line.endswith("lines of a_library were left out")]
    assert lines[told[0] + 1].endswith("later")
    assert told[1] == len(lines) - 1
    shown = sum(line.endswith("x" * 7000) for line in lines)
    assert shown + sum(int(lines[number].split()[-7]) for number in told) == 800


def test_warnings_are_printable_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with warnings.catch_warnings(), printable_logs():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "_showwarnmsg_impl", WRITES_A_WARNING)
        warnings.warn(f"{EVIL} {'x' * 60_000_000} end", stacklevel=1)
        for _ in range(200):
            warnings.warn("y" * 7000, stacklevel=1)
    assert is_clean(stream.getvalue())
    assert "end" in stream.getvalue()
    assert "warnings logs too much" in stream.getvalue()
    assert len(stream.getvalue()) < 1_100_000


def WRITES_A_WARNING(message: Any) -> None:
    """What Python itself does outside of a test."""
    sys.stderr.write(warnings._formatwarnmsg(message))  # type: ignore[attr-defined]


def test_what_ends_a_thread_is_printable(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)

    def fails() -> None:
        raise ValueError(EVIL)

    with printable_logs():
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join(60)
    shown = capfd.readouterr().err
    assert "ValueError: " in shown
    assert is_clean(shown)


def configuration() -> tuple[Any, ...]:
    return logging.Handler.handle, warnings.formatwarning, threading.excepthook


def test_everything_is_put_back_by_the_last_block_to_end(library: logging.Logger, stream: io.StringIO) -> None:
    before = configuration()
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with printable_logs():
            inside.set()
            assert go_on.wait(60)

    thread = threading.Thread(target=other)
    with printable_logs(), printable_logs():
        thread.start()
        assert inside.wait(60)
    library.error(EVIL)
    go_on.set()
    thread.join(60)
    assert is_clean(written(stream))
    assert configuration() == before
    library.error("raw \x1b[2J")
    assert "raw \x1b[2J" in stream.getvalue()


def test_who_puts_something_over_it_keeps_that_and_nothing_is_called_twice(
    library: logging.Logger, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logging.Handler.handle
    with printable_logs():
        ours, seen = logging.Handler.handle, []

        def theirs(self: logging.Handler, record: logging.LogRecord) -> Any:
            seen.extend([record] if self is library.handlers[0] else [])
            return ours(self, record)

        monkeypatch.setattr(logging.Handler, "handle", theirs)
    assert logging.Handler.handle is theirs
    library.error("raw \x1b[2J")
    for _ in range(2):
        with printable_logs():
            library.error(EVIL)
        assert logging.Handler.handle is theirs
    assert len(seen) == 3
    assert is_clean(written(stream).replace("raw \x1b[2J", ""))
    logging.Handler.handle = ours  # type: ignore[method-assign] # as they found it
    with printable_logs():
        library.error(EVIL)
    assert logging.Handler.handle is before


def test_a_handler_that_raises_at_the_end_leaves_no_watch_behind() -> None:
    class Broken(logging.Handler):
        ready = False

        def emit(self, record: logging.LogRecord) -> None:
            if self.ready:
                raise OSError("no terminal")

    broken, logger = Broken(), logging.getLogger("flooded")

    def flood() -> None:
        with printable_logs(lambda: 0.0):
            for _ in range(200):
                logger.warning("x" * 90_000)
            broken.ready = True

    shown = io.StringIO()
    after = logging.StreamHandler(shown)
    logger.addHandler(broken)
    try:
        with pytest.raises(OSError, match="no terminal"):
            flood()
        logger.removeHandler(broken)
        logger.addHandler(after)
        logger.warning("\x1b as it came")
    finally:
        logger.removeHandler(broken)
        logger.removeHandler(after)
    assert shown.getvalue() == "\x1b as it came\n"


def test_where_nobody_has_set_up_logging_ours_say_where_they_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    with printable_logs():
        for name in ("rlmoptimizer.somewhere", "kernel_bridge", "rlmoptimizers", "dspy"):
            logging.Logger(name).warning("of %s", name)  # knows no root, so Python's last resort writes it
    assert capsys.readouterr().err.splitlines() == [
        "RLMDocstringOptimizer: warning: of rlmoptimizer.somewhere",
        "RLMDocstringOptimizer: warning: of kernel_bridge",
        "of rlmoptimizers",
        "of dspy",
    ]
