"""Data sets and selections: stable ids, and the laws of what a selection chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.errors import InvalidSetup, SelectionError
from rlmoptimizer.task.dataset import Row, Selection, build_dataset, parse_selection, select


def rows_of(count: int) -> tuple[Row, ...]:
    return build_dataset([dspy.Example(q=str(n)).with_inputs("q") for n in range(count)]).train


def ids_of(rows: tuple[Row, ...]) -> list[int]:
    return [int(row.example_id) for row in rows]


def chosen(count: int = 20, failed: Any = None, **selectors: Any) -> list[int]:
    return ids_of(select(rows_of(count), parse_selection(**selectors), failed))


# Data sets.


@pytest.mark.smoke
def test_ids_are_positions_in_their_split() -> None:
    examples = [dspy.Example(q=n).with_inputs("q") for n in range(3)]
    data = build_dataset(examples, examples[:2])
    assert [row.example_id for row in data.train] == ["1", "2", "3"]
    assert data.val is not None
    assert [row.example_id for row in data.val] == ["1", "2"]
    assert data.train[1].example is examples[1]


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"example_id": "a7", "id": "other"}, "a7"),
        ({"id": 12}, "12"),
        ({"id": 0}, "0"),
        ({"example_id": "", "id": "b"}, "b"),
        ({"example_id": None}, None),
        ({}, None),
    ],
)
def test_an_examples_own_id_is_kept_beside_the_position(fields: dict[str, Any], source: str | None) -> None:
    (row,) = build_dataset([dspy.Example(q="?", **fields).with_inputs("q")]).train
    assert row.source_example_id == source


def test_any_iterable_of_examples_is_taken_and_no_validation_set_is_none() -> None:
    data = build_dataset(dspy.Example(q=n).with_inputs("q") for n in range(4))
    assert len(data.train) == 4
    assert data.val is None


@pytest.mark.parametrize(
    ("trainset", "message"),
    [
        ([], "trainset is empty"),
        (None, "trainset must be a list of dspy.Example, not None"),
        ("questions", "not a str"),
        (dspy.Example(q=1).with_inputs("q"), "not an Example"),
        ([{"q": 1}], r"example 1 of trainset is a dict.*dspy.Example\(\*\*fields\)"),
        ([dspy.Example(q=1).with_inputs("q"), dspy.Example(q=2, a=3)], r"example 2 of trainset.*'q', 'a'.*with_inputs"),
        ([dspy.Prediction(q=1)], "example 1 of trainset is a Prediction"),
    ],
)
def test_a_data_set_that_cannot_be_used_says_which_example_and_how_to_mend_it(trainset: Any, message: str) -> None:
    with pytest.raises(InvalidSetup, match=message):
        build_dataset(trainset)


def test_an_example_of_val_with_other_inputs_than_train_is_refused() -> None:
    train = [dspy.Example(q=1).with_inputs("q"), dspy.Example(q=1, hint=2).with_inputs("q", "hint")]
    assert len(build_dataset(train, train[1:]).val or ()) == 1
    message = "example 2 of valset has the input fields 'text'; those of train are 'hint', 'q' or 'q'"
    with pytest.raises(InvalidSetup, match=message):
        build_dataset(train, [train[0], dspy.Example(text="?").with_inputs("text")])


def test_an_empty_validation_set_is_not_taken_for_none() -> None:
    with pytest.raises(InvalidSetup, match=r"valset is empty.*valset=None"):
        build_dataset([dspy.Example(q=1).with_inputs("q")], [])


# Selections.


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ("3,7,12", [3, 7, 12]),
        ("10-12", [10, 11, 12]),
        ("12, 3 - 5 ; 4", [3, 4, 5, 12]),
        ("[3, 7]", [3, 7]),
        ("1..3", [1, 2, 3]),
        ("'2' '4'", [2, 4]),
        ([3, "7", 12.0], [3, 7, 12]),
        (["1-2", [5]], [1, 2, 5]),
        (range(2, 5), [2, 3, 4]),
        ({4, 2}, [2, 4]),
        (np.array([2, 3]), [2, 3]),
        (7, [7]),
        (7.0, [7]),
        (np.int64(7), [7]),
        ("7.0", [7]),
        ("5,5,5", [5]),
        (None, list(range(1, 21))),
    ],
)
def test_ids_are_read_however_they_are_written(ids: Any, expected: list[int]) -> None:
    assert chosen(ids=ids) == expected


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ({"ids": "12-10"}, "runs backwards; write it as '10-12'"),
        ({"ids": "0"}, "ids start at 1"),
        ({"ids": "-3"}, "ids start at 1"),
        ({"ids": "three"}, "'three' is not an example id"),
        ({"ids": "1-2-3"}, "is not an example id"),
        ({"ids": "3.5"}, "is not an example id"),
        ({"ids": [None]}, "None is not an example id"),
        ({"ids": True}, "True is not an example id"),
        ({"ids": {"a": 1}}, "is not an example id"),
        ({"ids": b"12"}, "is not an example id"),
        ({"ids": float("nan")}, "is not an example id"),
        ({"ids": "9" * 5000}, "is not an example id"),
        ({"ids": ""}, "selects nothing"),
        ({"ids": []}, "selects nothing"),
        ({"limit": 0}, "1 or more"),
        ({"limit": -4}, "1 or more"),
        ({"limit": 2.5}, "1 or more"),
        ({"limit": "many"}, "1 or more"),
        ({"limit": True}, "1 or more"),
        ({"limit": float("inf")}, "1 or more"),
        ({"sample": "last"}, '"first" or "random"'),
        ({"sample": 3}, '"first" or "random"'),
        ({"sample_seed": "x"}, "sample_seed='x' is not valid"),
        ({"failed_from_run": ""}, "failed_from_run='' is not valid"),
        ({"failed_from_run": 3}, "failed_from_run=3 is not valid"),
    ],
)
def test_a_selector_without_sense_is_refused_and_says_what_is_valid(selectors: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        parse_selection(**selectors)


def test_ids_beyond_the_data_set_are_named_with_those_that_exist() -> None:
    with pytest.raises(SelectionError, match="no such example ids: 21-25, 99; the ids are 1-20"):
        chosen(ids="3, 19-25, 99")


def test_a_range_of_any_size_is_refused_at_once() -> None:
    with pytest.raises(SelectionError, match="no such example ids: 21-999999999999"):
        chosen(ids="1-999999999999")


@pytest.mark.parametrize("limit", [15, "15", 15.0, " 15 ", "15.0", np.int64(15)])
def test_a_limit_may_come_as_text_or_float(limit: Any) -> None:
    assert chosen(limit=limit) == list(range(1, 16))


def test_a_limit_beyond_the_rows_takes_them_all() -> None:
    assert chosen(limit=500) == list(range(1, 21))


def test_a_seeded_sample_is_the_same_every_time_and_other_seeds_differ() -> None:
    first, again, other = (chosen(limit=5, sample="random", sample_seed=seed) for seed in (7, "7", 8))
    assert first == again == sorted(first)
    assert first != other


def test_a_random_sample_demands_a_seed() -> None:
    with pytest.raises(AssertionError):
        chosen(limit=5, sample="random")


def test_failed_rows_meet_the_other_selectors() -> None:
    assert chosen(failed={"2", "4", "9"}, failed_from_run="r1") == [2, 4, 9]
    assert chosen(failed={"2", "4", "9"}, failed_from_run="r1", ids="3-9") == [4, 9]
    assert chosen(failed={"2", "4", "9"}, failed_from_run="r1", limit=1) == [2]


def test_a_run_in_which_everything_passed_selects_nothing() -> None:
    assert chosen(failed=(), failed_from_run="r1", ids="1-5") == []


def test_ids_none_of_which_failed_are_refused_with_those_that_did() -> None:
    with pytest.raises(SelectionError, match=r"none of these ids failed in run r1; the ids that did: 2,4"):
        chosen(failed={"2", "4"}, failed_from_run="r1", ids="5-9")


# Laws.

positions = st.sets(st.integers(1, 40), min_size=1)


@st.composite
def spellings(draw: st.DrawFn, wanted: set[int]) -> Any:
    """Some way of writing down a set of ids, with repetitions and in any order."""
    parts: list[Any] = []
    for number in draw(st.permutations(sorted(wanted))):
        upto = number
        while upto + 1 in wanted and draw(st.booleans()):
            upto += 1
        alone: list[Any] = [number, float(number), str(number), f"{number}.0"]
        parts.append(f"{number}-{upto}" if upto > number else draw(st.sampled_from(alone)))
    if draw(st.booleans()):
        return parts
    texts = [str(part) for part in parts]
    return draw(st.sampled_from([",", ", ", " ", ";", " ,\n"])).join(texts)


@given(st.data(), positions)
def test_every_spelling_of_a_set_of_ids_selects_exactly_it_in_order(data: st.DataObject, wanted: set[int]) -> None:
    selected = chosen(40, ids=data.draw(spellings(wanted)))
    assert selected == sorted(wanted)


selections = st.builds(
    parse_selection,
    limit=st.none() | st.integers(1, 60),
    ids=st.none() | positions,
    sample=st.sampled_from(["first", "random"]),
    sample_seed=st.none() | st.integers(),
    failed_from_run=st.none() | st.just("r3"),
)


@given(selections)
def test_a_selection_round_trips_through_its_config(selection: Selection) -> None:
    assert parse_selection(**selection.as_config()) == selection


@given(st.builds(replace, selections, sample_seed=st.integers()), st.sets(st.integers(1, 40)), st.integers(40, 50))
def test_what_is_selected_was_asked_for(selection: Selection, failed: set[int], count: int) -> None:
    rows = rows_of(count)
    try:
        selected = ids_of(select(rows, selection, {str(number) for number in failed}))
    except SelectionError:
        assert selection.failed_from_run is not None
        assert selection.ids is not None
        return
    assert selected == sorted(set(selected))
    asked = set(range(1, count + 1))
    if selection.ids is not None:
        asked &= {number for first, last in selection.ids for number in range(first, last + 1)}
    if selection.failed_from_run is not None:
        asked &= failed
    assert set(selected) <= asked
    assert len(selected) == (len(asked) if selection.limit is None else min(selection.limit, len(asked)))
    if selection.sample == "first":
        assert selected == sorted(asked)[: len(selected)]
