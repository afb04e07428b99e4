from __future__ import annotations

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from story_events import STORY

from rlmoptimizer.show.terminal.display import Display
from rlmoptimizer.show.terminal.stream import LastingStream


@given(
    st.text(st.characters(exclude_categories=())),  # lone surrogates too
    st.sampled_from(["ascii", "cp1252", "cp437", "latin-1", "utf-8", "utf-16"]),
)
def test_any_text_can_be_written_in_any_encoding(text: str, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")
    lasting = LastingStream(stream)
    assert lasting.write(text) == len(text)
    lasting.flush()
    assert lasting.stream is stream
    written = stream.buffer.getvalue().decode(encoding)  # pyright: ignore
    if encoding == "utf-8" and text.isascii():
        assert written == text


def test_without_a_stream_all_is_lost_and_nothing_fails() -> None:
    lasting = LastingStream(None)
    lasting.write("text")
    lasting.flush()
    assert not lasting.isatty()
    with pytest.raises(OSError, match="no stream"):
        lasting.fileno()


def test_a_closed_stream_is_written_to_no_more() -> None:
    stream = io.StringIO()
    stream.close()
    lasting = LastingStream(stream)
    assert not lasting.isatty()
    lasting.write("text")
    assert lasting.stream is None


def test_a_pipe_without_a_reader_is_written_to_no_more() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as pipe:
        lasting = LastingStream(pipe)
        lasting.write("a line\n")
        assert lasting.stream is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # what is buffered can be written where it closes


@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_compile_is_shown_in_any_encoding(verbose: bool, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr("sys.stderr", stream)
    display = Display(verbose=verbose)
    for event in STORY:
        display(event)
    display.close()
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)  # pyright: ignore
    assert "RLMDocstringOptimizer: gain on val" in shown
    if verbose and encoding == "ascii":
        assert "############-" not in shown  # 12 of 22 units, as a bar
        assert "#######------" in shown


def test_a_compile_is_shown_to_nobody_where_there_is_no_stderr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    display = Display(verbose=True)
    for event in STORY:
        display(event)
    display.close()
    assert capfd.readouterr() == ("", "")


def test_colors_that_are_forced_on_a_file_do_not_make_bars_move_there(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    display = Display(verbose=True)
    for event in STORY:
        display(event)
    display.close()
    assert "\x1b[35m" in stream.getvalue()  # a turn is magenta
    assert "\x1b[?25l" not in stream.getvalue()
    assert Console(file=stream).is_interactive  # rich itself would move them
