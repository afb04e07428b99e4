"""What is found suspicious in prompts: copied passages, labels, repetitions and growth."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmoptimizer.outcome.hygiene import check_hygiene
from rlmoptimizer.outcome.named_labels import Labels
from rlmoptimizer.outcome.words import texts_in
from rlmoptimizer.text import token_estimate


@dataclass
class Row:
    example_id: str
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])
    expected: dict[str, Any] = field(default_factory=dict[str, Any])


def answers(*labels: Any) -> list[Row]:
    return [Row(str(number), expected={"answer": label}) for number, label in enumerate(labels, start=1)]


STORY = "the parcel that I ordered on Monday came broken and nobody answers the phone"


def test_a_passage_of_a_row_is_found_in_whatever_case_and_punctuation() -> None:
    rows = [Row("1", {"text": "nothing"}), Row("2", {"parts": [{"text": f"Hello, {STORY}. Bye"}]}), Row("3", {"x": 1})]
    prompt = "Sort it. For instance: THE PARCEL that I ordered, on Monday, came broken (and nobody answers)! End."
    found = check_hygiene({"sort": "Sort it."}, {"sort": prompt}, rows)
    (passage,) = found.copied
    assert (passage.step, passage.words, passage.row_count, passage.example_ids) == ("sort", 12, 1, ("2",))
    assert passage.text == "THE PARCEL that I ordered, on Monday, came broken (and nobody answers"
    assert found.warnings == ("the prompt of step 'sort' holds 12 words in a row of example 2 of train",)
    assert json.loads(json.dumps(found.as_dict()))["copied"][0]["example_ids"] == ["2"]


def test_what_the_prompts_said_before_and_short_passages_do_not_count() -> None:
    rows = [Row("1", {"text": STORY})]
    seven = " ".join(STORY.split()[:7])
    assert check_hygiene({"a": "Sort."}, {"a": f"{seven} Go."}, rows).copied == ()
    assert check_hygiene({"a": STORY, "b": "Say."}, {"a": STORY, "b": f"Say. {STORY}"}, rows).copied == ()
    assert check_hygiene({"a": STORY}, {"a": STORY}, rows).warnings == ()


def test_a_passage_of_most_rows_is_the_tasks_own_wording() -> None:
    rows = [Row(str(number), {"text": f"{STORY} {number}"}) for number in range(1, 30)]
    found = check_hygiene({"a": "Sort."}, {"a": f"The text begins with: {STORY}"}, rows)
    assert found.copied[0].row_count == 29
    assert found.copied[0].example_ids == tuple(map(str, range(1, 11)))
    assert found.warnings == ()


def test_the_tasks_own_wording_is_not_counted_as_text_of_examples() -> None:
    own = "on Tuesday a blue one with two handles was sent"
    rows = [Row(str(number), {"text": f"{STORY} {number}"}) for number in range(1, 30)] + [Row("30", {"text": own})]
    found = check_hygiene({"a": "Sort."}, {"a": f"The text begins with: {STORY}. Then {own}"}, rows)
    assert (len(found.copied), found.copied_rows) == (2, 1)
    assert found.warnings == ("the prompt of step 'a' holds 10 words in a row of example 30 of train",)


def test_passages_are_found_in_other_scripts() -> None:
    greek = "το δέμα που παρήγγειλα τη Δευτέρα ήρθε σπασμένο και κανείς"
    chinese = "我星期一订的包裹到了但是坏了"
    rows = [Row("1", {"text": greek}), Row("2", {"text": chinese})]
    found = check_hygiene({"a": ""}, {"a": f"{greek.upper()}。{chinese}!"}, [*rows, Row("3"), Row("4")])
    assert [(one.words, one.example_ids) for one in found.copied] == [(14, ("2",)), (10, ("1",))]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=60), st.lists(st.sampled_from("abc"), max_size=60))
def test_exactly_the_passages_whose_every_8_words_are_new_to_the_prompt_are_found(
    prompt: list[str], text: list[str]
) -> None:
    before = ["a"] * 8
    old, new = windows(before), windows(prompt) - windows(before)
    copied = [tuple(text[at : at + 8]) in new for at in range(len(text) - 7)]
    expected: set[tuple[str, ...]] = set()
    for first in range(len(copied)):
        if copied[first] and not (first and copied[first - 1]):
            last = first
            while last + 1 < len(copied) and copied[last + 1]:
                last += 1
            expected.add(tuple(text[first : last + 8]))
    assert tuple(before) in old
    found = check_hygiene({"a": " ".join(before)}, {"a": " ".join(prompt)}, [Row("1", {"text": " ".join(text)})])
    assert [one.words for one in found.copied] == sorted(map(len, expected), reverse=True)[:10]


def windows(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}


def test_a_label_that_one_example_has_is_found_and_names_of_classes_are_not() -> None:
    rows = answers("Avenue Foch 12", "Rua Augusta 100", "Bahnhofstrasse 1", 48213, "Via Roma 7")
    found = check_hygiene({"a": "Find it."}, {"a": "Find it, such as rua augusta 100 or 48213."}, rows)
    assert {(one.field, one.label, one.example_id) for one in found.labels} == {
        ("answer", "rua augusta 100", "2"),
        ("answer", "48213", "4"),
    }
    assert "names the label of example 2 of train alone (and 1 more like it)" in found.warnings[0]
    classes = answers(*["billing question"] * 3, *["bug report"] * 3, "other things")
    assert check_hygiene({"a": ""}, {"a": "Say billing question, bug report or other things."}, classes).labels == ()


def test_classes_of_which_many_have_one_row_are_no_labels_of_one_example() -> None:
    rng = random.Random(0)
    names = [f"class number {number}" for number in range(77)]
    rows = answers(*rng.choices(names, k=60))
    assert check_hygiene({"a": ""}, {"a": f"Answer with one of: {', '.join(names)}."}, rows).labels == ()


@pytest.mark.parametrize("prompt", ["Answer 7 or so.", "It is no more.", "Look for Rua Augusta 1000.", "Reply: true."])
def test_what_is_no_label_of_one_example_is_not_taken_for_one(prompt: str) -> None:
    rows = answers("Rua Augusta 100", 7, "so", True, "shared words", "shared words", "other words", "")
    assert check_hygiene({"a": "shared words"}, {"a": f"{prompt} shared words"}, rows).labels == ()
    assert check_hygiene({"a": "Rua Augusta 100"}, {"a": f"{prompt} Rua Augusta 100"}, rows).labels == ()


def test_a_long_list_and_a_long_text_are_no_labels_and_are_not_kept() -> None:
    many, long = [f"street {number}" for number in range(101)], "long " * 49 + "and so on"
    for value, count in ((many, 0), (many[:100], 1), (long, 0)):
        rows = [Row("1", expected={"answer": value})]
        assert len(check_hygiene({"a": ""}, {"a": f"Say street 50, or {long}."}, rows).labels) == count
    tracemalloc.start()
    labels = Labels()
    for number in range(10):
        labels.add(Row(str(number), expected={"path": list(range(5000)), "story": f"word {number} " * 5000}))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 200_000


def test_sentences_said_again_are_counted_and_growth_is_told() -> None:
    said = "Answer with one word only.\n"
    before, after = f"Go. {said}{said}", "Go. " + said * 3 + "Never ever explain your answer! " * 2 + "Go. Go. " * 9
    found = check_hygiene({"a": before}, {"a": after}, [])
    assert [(one.text, one.times) for one in found.repeated] == [
        ("Answer with one word only.", 3),
        ("Never ever explain your answer!", 2),
    ]
    assert found.warnings == ("the prompt of step 'a' says 3 times: Answer with one word only.",)
    assert check_hygiene({"a": ""}, {"a": said * 2}, []).warnings == ()  # as two worked examples may
    assert [(one.tokens_before, one.tokens_after) for one in found.growth] == [
        (token_estimate(before), token_estimate(after))
    ]
    grown = check_hygiene({"a": "Go."}, {"a": "go on " * 1000}, [])
    assert grown.warnings == (
        "the prompt of step 'a' has grown from about 1 to 1,500 tokens, which every call pays for",
    )


def test_thousands_of_long_rows_take_seconds() -> None:
    rng = random.Random(0)
    words = ["the", "of", "and", "a", "to"] * 40 + [f"word{number}" for number in range(3000)]
    rows = [
        Row(str(number), {"text": " ".join(rng.choices(words, k=400))}, {"label": number}) for number in range(5000)
    ]
    prompt = " ".join(rng.choices(words, k=3000))
    began = time.process_time()
    check_hygiene({"a": ""}, {"a": prompt}, rows)  # 12 MB; 100 MB take ten times as long
    assert time.process_time() - began < 3
    same = Row("1", {"text": "a " * 50_000})
    began = time.process_time()
    assert check_hygiene({"a": ""}, {"a": "a " * 50_000}, [same]).copied[0].words == 50_000
    assert time.process_time() - began < 3


@given(st.text(max_size=300))
def test_a_token_is_four_bytes(text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    assert 4 * token_estimate(text) - 3 <= size <= 4 * token_estimate(text)


def test_text_of_more_rows_than_are_listed_is_told_by_their_number() -> None:
    texts = [" ".join(f"row{row}word{place}" for place in range(8 + row)) for row in range(14)]
    rows = [Row(str(place), {"text": text}, {}) for place, text in enumerate(texts, start=1)]
    found = check_hygiene({"a": ""}, {"a": " and ".join(texts)}, rows)
    assert (len(found.copied), found.copied_rows) == (10, 14)
    assert found.warnings == (
        "the prompt of step 'a' holds 21 words in a row of example 14 of train; "
        "text of 14 of its 14 examples stands in the prompts",
    )


def test_a_label_of_one_word_is_worth_a_warning_only_with_others() -> None:
    rows = answers("three", "author", "british", "Avenue Foch 12", "no more than that", "another one of them")
    for prompt, warns in (("three", False), ("three british", False), ("three british author", True)):
        found = check_hygiene({"a": ""}, {"a": f"Find the {prompt}."}, rows)
        assert len(found.labels) == len(prompt.split())
        assert bool(found.warnings) == warns
    (warning,) = check_hygiene({"a": ""}, {"a": "Find three, or avenue foch 12."}, rows).warnings
    assert "names the label of example 4 of train alone (and 1 more like it)" in warning


def test_what_stands_in_several_rows_is_the_tasks_own_wording() -> None:
    stock = "where m and n are relatively prime positive integers"
    rows = [Row(str(number), {"text": f"Number {number}, {stock}"}) for number in range(1, 41)]
    for shared, warns in ((1, True), (2, True), (3, False)):
        train = rows[:shared] + [Row(str(number), {"text": "something else"}) for number in range(shared + 1, 41)]
        found = check_hygiene({"a": ""}, {"a": f"Find it, {stock}."}, train)
        assert found.copied[0].row_count == shared
        assert bool(found.warnings) == warns


def test_the_base64_of_an_attachment_is_no_text() -> None:
    image = {"url": f"data:image/png;base64,{'AAAA/' * 1000}"}
    assert list(texts_in({"image": image, "title": "a cat"})) == ["a cat"]
    told = "it begins with data:image/png;base64,"
    assert list(texts_in([told])) == [told]
