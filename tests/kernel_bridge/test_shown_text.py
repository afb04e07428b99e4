"""What a kernel or an LM wrote is shown whole and steers nothing."""

from __future__ import annotations

import pickle
import sys
import unicodedata
from pathlib import Path

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from hypothesis import given
from hypothesis import strategies as st

from kernel_bridge import KernelDied, KernelSession, NotSendable, StartupFailed
from kernel_bridge.text import make_showable, printable, printable_line, traceback_shown

ESCAPES = "\x1b]0;title\x07 \x1b]52;c;aGk=\x1b\\ \x9b31m \x1bPq\x1b\\ \b\r over \x00 \u202eabc\u2066 \ud800 \U000e0041"
# They belong to the writing of languages and of emoji: numbers' signs, joiners.
SHOWN = {*range(0x600, 0x606), 0x6DD, 0x890, 0x891, 0x8E2, 0x200C, 0x200D, 0x110BD, 0x110CD}


def steers(text: str) -> list[str]:
    unseen = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    return [c for c in unseen if c not in "\n\t" and ord(c) not in SHOWN]


@pytest.mark.smoke
def test_no_character_that_unicode_calls_a_control_a_format_or_a_surrogate_is_shown_as_it_is() -> None:
    everything = "".join(map(chr, range(0x110000)))
    assert steers(everything)
    assert steers(printable(everything, None)) == []
    assert "\n" not in printable_line(everything, len(everything))
    assert "\t" not in printable_line(everything, len(everything))


@given(st.text())
def test_what_is_shown_can_always_be_encoded(text: str) -> None:
    printable(text).encode()
    printable_line(text).encode()


# The plane of the tags, in which whole texts can be hidden, is shown by numbers altogether.
HARMLESS = st.characters(exclude_categories=("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")).filter(lambda c: ord(c) >> 12 != 0xE0)


@given(st.text(HARMLESS, max_size=200))
def test_harmless_text_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == printable_line(text) == text


def test_a_long_text_keeps_its_head_and_its_tail() -> None:
    text = printable("a" * 50_000 + "\x1b" + "z" * 50_000, 100)
    assert text.startswith("a" * 50 + "\n")
    assert text.endswith("\n" + "z" * 50)
    assert "99,901 characters left out" in text
    assert len(printable("x" * 10**6)) < 10_000
    assert printable_line("x" * 1000, 10) == "xxxxxxx..."


@pytest.mark.parametrize(
    "error",
    [
        ValueError(ESCAPES),
        RuntimeError("first", ESCAPES),
        SyntaxError(ESCAPES, ("<cell>", 1, 1, ESCAPES)),
        KernelDied(ESCAPES, 1, ESCAPES),
        NotSendable(ESCAPES, "set", ESCAPES),
        AdapterParseError("ChatAdapter", dspy.Signature("a -> b"), ESCAPES),
        OSError(2, "no such file", ESCAPES),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_text_of_an_exception_is_made_safe_in_place(error: Exception) -> None:
    kind = type(error)
    make_showable(error)
    assert type(error) is kind
    assert steers(str(error)) == []
    assert steers(traceback_shown(error)) == []


def test_what_an_exception_came_from_and_its_notes_are_made_safe_too() -> None:
    try:
        try:
            raise KeyError(ESCAPES)
        except KeyError:
            raise ValueError(ESCAPES) from RuntimeError(ESCAPES)
    except ValueError as raised:
        error = raised
    error.__notes__ = [ESCAPES]  # what add_note does, where Python has it
    make_showable(error)
    assert isinstance(error.__context__, KeyError)
    texts = [str(error), str(error.__cause__), str(error.__context__), *error.__notes__]
    assert [steers(text) for text in texts] == [[], [], [], []]


def test_exceptions_that_came_from_each_other_and_texts_that_cannot_be_made_do_no_harm() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise TypeError("no")

    first, second = Unspeakable(), ValueError(10**5000)
    first.__cause__, second.__cause__ = second, first
    make_showable(first)
    assert second.args == (10**5000,)


def test_a_harmless_exception_stays_as_it_is() -> None:
    parts = ("a", 1, None)
    error = ValueError(*parts)
    make_showable(error)
    assert error.args == parts


def test_a_lost_session_says_it_safely_and_keeps_it_as_it_came() -> None:
    lost = KernelDied(f"why {ESCAPES}", 3, ESCAPES)
    assert steers(str(lost)) == []
    assert (lost.reason, lost.stderr_tail) == (f"why {ESCAPES}", ESCAPES)
    again = pickle.loads(pickle.dumps(lost))
    assert (str(again), again.stderr_tail) == (str(lost), ESCAPES)


def test_the_last_words_of_a_kernel_that_does_not_come_up_are_told_safely(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\nsys.stderr.write({ESCAPES[:40]!a})\nsys.exit(3)\n")
    python.chmod(0o755)
    session = KernelSession(python=python, confinement="off")
    with pytest.raises(StartupFailed, match="title") as lost:
        session.start()
    assert steers(str(lost.value)) == []
