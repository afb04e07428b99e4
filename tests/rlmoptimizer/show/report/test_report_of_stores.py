"""The report of every kind of optimization, in a real browser: the page can draw what the document holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import OpenPage
from stored_optimization import AFTER, BEFORE, add_run, finish, setup_of
from stored_runs import result

from rlmoptimizer.records import LMCall
from rlmoptimizer.show.report.page import write_report
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

pytest.importorskip("playwright", reason="playwright does not support this Python yet")
from playwright.sync_api import Page, expect

VIEWS = ("", "candidates", "candidates?candidate=0", "prompts", "examples", "turns", "setup")
OTHER = {**BEFORE, "reply": "Answer in a friendly way."}


def opened(store: RunStore, open_page: OpenPage) -> Page:
    """The report of a store, after each of its views was drawn."""
    path = store.path.with_name("report.html")
    store.close()
    with StoreReader.open(store.path) as reading:
        write_report(reading, path)
    page = open_page(path)
    for view in VIEWS:
        page.goto(f"{path.as_uri()}#/{view}")
        page.wait_for_selector(".view:not([hidden])")
    page.goto(f"{path.as_uri()}#/")
    return page


def test_one_with_everything_that_can_happen_in_it(open_page: OpenPage, tmp_path: Path) -> None:
    store = RunStore.create_in(tmp_path)
    branch = {"store": "runs-0001.sqlite", "run_id": "r3", "units": 100, "limit": 100, "prompts": BEFORE}
    store.record_setup(setup_of(60, 4, 4, branch=branch))
    confined = {"in_force": {"no_network": "bubblewrap"}, "missing": {"cpu_capped": "not asked for"}, "requested": []}
    store.record_event("KernelStarted", {"tier": "A", "summary": "bubblewrap", "interpreter": "K", **confined})
    add_run(store, "train", [float(number % 2) for number in range(60)], BEFORE, baseline=True)
    add_run(store, "val", [1, 0, 0, 0], BEFORE, baseline=True)
    store.set_prompts(AFTER)
    failed = result("0", 0.0, error="boom", error_kind="program", predicted=None, steps=())
    unserved = result("1", 0.0, error="no answer", error_kind="timeout", predicted=None)
    rows = [failed, unserved, *(result(str(number), 1.0) for number in range(2, 40))]
    cut = add_run(store, "train", rows, AFTER, turn=1, planned=60, ends=False)
    store.finish_run(cut, cancelled=True)
    store.record_event("PromptUpdated", {"step": "topic"})
    store.record_event("KernelDied", {"turn": 1, "reason": "it used more than 2 GB of memory"})
    store.record_iteration("Shorter.", "update_prompt('topic', text)", "set", seconds=1.5)
    store.record_event("WorkPaused", {"before_turn": 2})
    store.record_event("NoteGiven", {"before_turn": 2, "text": "Look at the refunds."})
    store.record_event("WorkUnpaused", {"before_turn": 2, "seconds": 3.0})
    twice = [result(str(number), 0.5, rollout=rollout) for rollout in (0, 1) for number in range(60)]
    add_run(store, "train", twice, OTHER, turn=2)
    spare = {one: place for one, place in store.judged_rows("train", OTHER).items() if one[0] == "0"}
    reusing = store.begin_run("train", {}, OTHER, planned_ids=["0"], repeats=2, spare=spare, turn=2)
    store.finish_run(reusing)
    store.record_lm_calls(LMCall("root", "m", "answered", 10, 10, None), LMCall("eval", "m", "cached", None, None, 0))
    store.record_iteration("Done.", "SUBMIT(...)", "")
    add_run(store, "val", [1, 1, 1, 0], OTHER)
    for prompts in (BEFORE, OTHER):
        add_run(store, "test", [1, 0, 1, 0], prompts, baseline=prompts is BEFORE)
    finish(store, OTHER)
    page = opened(store, open_page)
    expect(page.get_by_role("heading", name="no proven gain", exact=True)).to_be_visible()
    page.goto(f"{page.url.partition('#')[0]}#/turns")
    for text in ("Look at the refunds.", "it used more than 2 GB of memory"):
        expect(page.get_by_text(text).first).to_be_visible()
    page.goto(f"{page.url.partition('#')[0]}#/examples?open=1")
    expect(page.get_by_text("q1").first).to_be_visible()


def test_one_that_has_just_begun(open_page: OpenPage, tmp_path: Path) -> None:
    store = RunStore.create_in(tmp_path)
    store.record_setup(setup_of(2, 0))
    page = opened(store, open_page)
    expect(page.locator("#state")).to_contain_text("nterrupted")


def test_one_without_val_that_died_in_a_turn_before_anything_passed(open_page: OpenPage, tmp_path: Path) -> None:
    store = RunStore.create_in(tmp_path)
    store.record_setup(setup_of(3, 0))
    rows = [result(str(number), 0.0, error="boom", error_kind="program", predicted=None) for number in range(3)]
    add_run(store, "train", rows, BEFORE, baseline=True)
    store.begin_iteration("evaluate_program()")
    add_run(store, "train", [0.0], AFTER, turn=1, planned=3, ends=False)
    page = opened(store, open_page)
    expect(page.locator("#state")).to_contain_text("nterrupted")
    page.goto(f"{page.url.partition('#')[0]}#/turns")
    expect(page.get_by_text("evaluate_program()").first).to_be_visible()
