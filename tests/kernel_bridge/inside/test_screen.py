"""What a text with carriage returns comes to, however it is cut into pieces, and at what cost."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_bridge.inside.screen import Screen


def shown(*pieces: str) -> str:
    screen = Screen()
    return "".join([screen.feed(piece) for piece in pieces]) + screen.rest()


@pytest.mark.parametrize(
    ("text", "as_seen"),
    [
        ("plain\nlines\n", "plain\nlines\n"),
        ("1%\r2%\r100%\n", "100%\n"),
        ("long one\rshort\n", "shortone\n"),
        ("\rfirst\r", "first"),
        ("dos\r\nlines\r\n", "dos\nlines\n"),
        ("worse\r\r\nlines\n", "worse\nlines\n"),
        ("trailing  \r\nblanks  \r\n", "trailing  \nblanks  \n"),
        ("bar  50%\r         \rdone\n", "done\n"),
        ("bar  50%\r         \r", ""),
        ("-\b\\\b|\b/\bok\n", "ok\n"),
        ("\b\bx", "x"),
        (
            "\x1b[32mgreen\x1b[0m and \x1b]0;title\x07plain \x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\",
            "green and plain link",
        ),
        ("working...\x1b[2K\rdone\n", "done\n"),
        ("working...\r\x1b[Kdone\n", "done\n"),
        ("outer 1/2\n\rinner 1/9\x1b[A\n\rinner 9/9\x1b[A\router 2/2\n\n", "outer 2/2\ninner 9/9\n"),
        ("one\ntwo\n\x1b[2A\x1b[Jnew\n", "new\n"),
        ("abc\x1b[2Dx\x1b[1Gy\x1b[2Cz\n", "yxcz\n"),
        ("a\x1b[999999999999Cb", "a" + 499 * " " + "b"),
        ("宽的\r字", "字的"),
        ("\x1b[", ""),
        ("\x1b", ""),
    ],
)
def test_it_is_the_text_that_a_terminal_shows_in_the_end(text: str, as_seen: str) -> None:
    assert shown(text) == as_seen
    assert shown(*text) == as_seen


alphabet = st.sampled_from(["a", "b", " ", "字", "\n", "\r", "\b", "\x1b", "[", "2", "K", "A", "C", ";", "]", "\x07"])


@given(st.lists(st.text(alphabet, max_size=8), max_size=12))
def test_where_the_text_is_cut_makes_no_difference(pieces: list[str]) -> None:
    assert shown(*pieces) == shown("".join(pieces))
    again = shown(*pieces)
    assert not set(again) & {"\r", "\b", "\x1b"}
    assert shown(again) == again


@given(st.text(st.characters(exclude_characters="\r\b\x1b")))
def test_a_text_without_control_characters_is_left_as_it_is(text: str) -> None:
    assert shown(text, "x\r\n", text) == text + "x\n" + text


@pytest.mark.parametrize(
    ("unit", "left"),
    [("\rx", 1), ("ab\b\b", 2), ("\rprogress 中中中", 13), ("x\x1b[2K", 0), ("\x1b[500C\x1b[K", 0), ("\n\x1b[A", 1)],
)
def test_a_flood_is_held_in_little_memory_and_leaves_what_is_seen(unit: str, left: int) -> None:
    screen = Screen()
    out = 0
    tracemalloc.start()
    try:
        for _ in range(4):
            out += len(screen.feed(unit * 5_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**18
    assert out + len(screen.rest().rstrip("\n")) <= left + 1


def test_long_lines_and_long_texts_leave_the_screen_from_the_top() -> None:
    start = "start\r" + "y" * 300_000
    assert shown(start, "\rz") == "y" * (300_000 - 2**16) + "z" + "y" * (2**16 - 1)
    lines = "".join(f"line {number}\n" for number in range(50_000))
    assert shown("bar\rbar\n", lines, "last\rLAST\n") == "bar\n" + lines + "LAST\n"
