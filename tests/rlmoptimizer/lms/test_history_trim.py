from __future__ import annotations

from dspy.primitives.repl_types import REPLEntry, REPLHistory
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.lms.history_trim import Cut, HistoryTrim, TrimmedHistory

MOST = 10_000


def entries(*sizes: tuple[int, int, int]) -> list[REPLEntry]:
    """Turns with so many characters of reasoning, code and output."""
    return [
        REPLEntry(reasoning=f"r{n}".ljust(a, "."), code=f"c{n}".ljust(b, "."), output=f"o{n}".ljust(c, "."))
        for n, (a, b, c) in enumerate(sizes)
    ]


def history(turns: list[REPLEntry], cut: Cut, before: int | None = 0) -> TrimmedHistory:
    return TrimmedHistory.of(REPLHistory(entries=turns), cut, before)


def test_a_history_within_the_limit_is_shown_as_dspy_shows_it() -> None:
    turns = entries(*[(100, 100, 1_000)] * 7)
    cut = HistoryTrim(MOST, 10_000).look(turns)
    assert cut == Cut()
    assert history(turns, cut).format() == REPLHistory(entries=turns).format()


def test_above_the_limit_the_oldest_outputs_are_left_out_with_a_line_that_says_where_they_are() -> None:
    turns = entries(*[(100, 100, 1_000)] * 8)
    cut = HistoryTrim(MOST, 10_000).look(turns)
    assert cut == Cut(turns=0, outputs=4)
    shown = history(turns, cut, before=4).format()
    assert 'Output (1,000 chars): left out; print previous_trajectory[7]["output"]\n=== Step 5 ===' in shown
    assert [f"r{n}" in shown and f"c{n}" in shown for n in range(8)] == [True] * 8
    assert [f"o{n}" in shown for n in range(8)] == [False] * 4 + [True] * 4


def test_what_is_left_out_stays_so_for_many_turns_so_that_requests_begin_alike() -> None:
    turns = entries(*[(100, 100, 1_000)] * 40)
    trim = HistoryTrim(MOST, 10_000)
    cuts = [trim.look(turns[: count + 1]) for count in range(40)]
    assert cuts == sorted(cuts, key=lambda cut: (cut.outputs, cut.turns))
    assert len(set(cuts)) <= 1 + 40 / 3


def test_code_does_not_push_out_the_outputs_of_the_newest_turns() -> None:
    turns = entries(*[(500, 500, 100)] * 60)
    cut = HistoryTrim(MOST, 10_000).look(turns)
    shown = history(turns, cut, before=0).format()
    assert shown.startswith(f"[Steps 1 to {cut.turns} are left out; previous_trajectory[0:{cut.turns}] has all of it]")
    assert f"=== Step {cut.turns + 1} ===" in shown
    assert cut.turns < cut.outputs <= 56
    assert len(shown) < MOST


def test_the_last_turn_is_shown_however_long_it_is() -> None:
    turns = entries((10, 10, 10), (5_000, 5_000, 9_000))
    assert HistoryTrim(MOST, 10_000).look(turns) == Cut(turns=0, outputs=1)


def test_nothing_is_said_of_a_variable_where_none_can_be_read() -> None:
    turns = entries(*[(500, 500, 1_000)] * 20)
    cut = HistoryTrim(MOST, 10_000).look(turns)
    shown = history(turns, cut, before=None).format()
    assert "previous_trajectory" not in shown
    assert f"[Steps 1 to {cut.turns} are left out]" in shown
    assert "Output (1,000 chars): left out\n" in shown


def test_a_history_that_begins_anew_is_looked_at_anew() -> None:
    trim = HistoryTrim(MOST, 10_000)
    assert trim.look(entries(*[(100, 100, 1_000)] * 20)).outputs
    assert trim.look(entries((1, 1, 1), (1, 1, 1))) == Cut()


def test_without_a_limit_nothing_is_left_out() -> None:
    assert HistoryTrim(None, 10_000).look(entries(*[(9_000, 9_000, 9_000)] * 50)) == Cut()


sizes = st.tuples(*[st.integers(0, 4_000)] * 2, st.integers(0, 30_000))


@given(st.lists(sizes, max_size=40), st.integers(1_000, 60_000), st.integers(1, 12_000))
def test_what_is_shown_keeps_the_limit_but_for_the_last_turn(
    turns: list[tuple[int, int, int]], most: int, most_output: int
) -> None:
    trim, made = HistoryTrim(most, most_output), entries(*turns)
    for count in range(1, len(made) + 1):
        cut = trim.look(made[:count])
        assert 0 <= cut.turns <= cut.outputs <= count - 1
        told = TrimmedHistory.of(REPLHistory(entries=made[:count], max_output_chars=most_output), cut, 0)
        last = REPLHistory(entries=made[count - 1 : count], max_output_chars=most_output).format()
        assert len(told.format()) <= most + len(last) + 200


@given(st.lists(sizes, min_size=1, max_size=30), st.integers(1_000, 40_000))
def test_what_is_left_out_does_not_depend_on_how_often_one_looked(turns: list[tuple[int, int, int]], most: int) -> None:
    made, often = entries(*turns), HistoryTrim(most, 10_000)
    cuts = [often.look(made[: count + 1]) for count in range(len(made))]
    assert HistoryTrim(most, 10_000).look(made) == cuts[-1]
