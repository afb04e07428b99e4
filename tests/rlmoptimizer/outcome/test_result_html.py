"""A result in a notebook: all of it is there, whatever its texts are, and nothing of them is read as HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from stored_optimization import AFTER, BEFORE, add_run, finish, setup_of, write_small

from rlmoptimizer.outcome.optimization_result import OptimizationResult
from rlmoptimizer.store.run_store import RunStore

TAGS = {
    *("div", "p", "strong", "table", "tr", "th", "td", "details", "summary", "code", "ins", "del", "span"),
    *("svg", "path", "g", "circle", "text"),
}


class Parsed(HTMLParser):
    """The tags of a piece of HTML, which must all be closed, their attributes, and its text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(markup)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_shows_figures_facts_the_curve_and_what_changed_in_the_prompts(tmp_path: Path) -> None:
    with write_small(tmp_path) as store:
        shown = Parsed(OptimizationResult.of(store)._repr_html_())
    assert "No proven gain on val; val was looked at once while prompts were chosen" in shown.text
    for figure in ("50.0", "100.0", "+50.0", "+0.0 to +100.0", "1 of 2 prompts changed", "10 of 34 units in 1 turn"):
        assert figure in shown.text
    assert shown.tags.count("circle") == 2
    assert (shown.tags.count("details"), shown.tags.count("ins"), shown.tags.count("del")) == (1, 2, 0)
    assert " in one word" in shown.text


@pytest.mark.parametrize(
    "hostile",
    ["</div><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\u202e\x1b[31m\ud800"],
)
def test_no_text_of_it_is_read_as_html(hostile: str, tmp_path: Path) -> None:
    steps = {hostile: "Old.", "other": f"{hostile} same"}
    prompts = {hostile: f"Old. {hostile}", "other": f"{hostile} same, {hostile} new"}
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(2, 2, steps=steps))
        for split in ("train", "val"):
            add_run(store, split, [1.0, 0.0], steps, baseline=True)
            add_run(store, split, [1.0, 1.0], prompts)
        finish(store, prompts)
        markup = OptimizationResult.of(store)._repr_html_()
    shown = Parsed(markup)
    assert set(shown.tags) <= TAGS
    assert not {name for name in shown.attributes if name.startswith("on") or name in ("src", "href")}
    assert not set("\u202e\x1b\ud800") & set(markup)
    assert "http" not in markup


def test_one_without_val_and_without_a_new_prompt_is_shown_too(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(1, 0))
        add_run(store, "train", [0.0], BEFORE, baseline=True)
        finish(store, BEFORE)
        shown = Parsed(OptimizationResult.of(store)._repr_html_())
    assert "0 of 2 prompts changed" in shown.text
    assert "svg" not in shown.tags
    assert AFTER["topic"] not in shown.text


def test_no_text_of_it_is_taken_for_a_formula(tmp_path: Path) -> None:
    with write_small(tmp_path) as store:
        shown = OptimizationResult.of(store)._repr_html_()
    # As pandas marks its tables: what notebooks typeset leaves elements of these classes out.
    assert shown.startswith('<div class="tex2jax_ignore mathjax_ignore"')
