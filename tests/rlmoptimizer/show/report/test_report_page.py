"""The page of the report in a real browser: what it shows, and that all of it can be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import report_data
from browser import OpenPage

pytest.importorskip("playwright", reason="playwright does not support this Python yet")
from playwright.sync_api import Page, expect

VIEWS = ["", "candidates?candidate=3&example=e2", "prompts", "examples?open=e3", "turns", "setup"]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return report_data.document()


@pytest.fixture(scope="module")
def report(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    document["runs"][-1]["turn"] = None  # the final check of what was submitted
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report_data.page(document, report_data.examples_of(document), path).as_uri()


def ids_shown(page: Page) -> list[str]:
    return page.locator("#example-list .row-id").all_inner_texts()


def outcomes(document: dict[str, Any]) -> dict[str, list[str]]:
    rows = document["examples"]["rows"]
    return {
        "all": [row[0] for row in rows],
        "failed": [row[0] for row in rows if row[3] < 100],
        "fixed": [row[0] for row in rows if row[2] < 100 == row[3]],
        "broken": [row[0] for row in rows if row[3] < 100 == row[2]],
        "error": [row[0] for row in rows if row[4]],
    }


def test_the_overview_tells_how_much_better_and_how_sure(open_page: OpenPage, report: str) -> None:
    page = open_page(report)
    expect(page.get_by_role("heading", name="gain", exact=True)).to_be_visible()
    test = page.locator(".split", has=page.get_by_text("verdict", exact=True))
    expect(test).to_contain_text("from 51.7")
    expect(test).to_contain_text("78.3 +26.7 points")
    expect(test).to_contain_text("95% interval +17.5 to +35.8; p = 1.2e-6")
    expect(test.locator(".split-counts")).to_have_text("▲ 38 better▼ 6 worse= 75 same1 left out")
    expect(page.locator(".split").nth(1)).to_contain_text("95% interval +8.2 to +50.0")  # 8.25, as Python rounds it
    facts = page.locator(".facts")
    expect(facts).to_contain_text("Prompts changedclassifyof 2 steps")
    expect(page.get_by_role("img", name=re.compile("of 224 units spent"))).to_be_visible()
    expect(page.get_by_role("region", name="2 warnings")).to_contain_text("classify grew from 30 to 281 characters")
    expect(page.get_by_role("row", name="sub-LM 3 1,200 300 not known")).to_be_visible()


def test_the_chart_is_read_by_arrows_by_pointing_and_as_a_table(open_page: OpenPage, report: str) -> None:
    page = open_page(report)
    chart = page.get_by_role("application", name="Score against budget spent")
    chart.press("Home")
    expect(page.locator("#announcer")).to_contain_text("r1 · train · baseline, score")
    chart.press("ArrowRight")
    expect(page.locator("#announcer")).to_contain_text("r2 · val · baseline, score 54.2")
    expect(page.locator("#chart .bubble")).to_contain_text("24 of 24 examples")
    page.get_by_text("All evaluations as a table").click()
    expect(page.get_by_role("row", name=re.compile("^r2 val"))).to_contain_text("C0")
    chart.press("End")
    expect(page.locator("#announcer")).to_contain_text("after the agent's work")
    expect(page.get_by_role("row", name=re.compile("^r10 val"))).to_contain_text("after the agent's work")
    chart.press("Enter")
    expect(page).to_have_url(re.compile("#/candidates\\?candidate=5$"))


@pytest.mark.parametrize("name", ["failed", "fixed", "broken", "error"])
def test_a_filter_shows_just_its_examples(
    open_page: OpenPage, report: str, document: dict[str, Any], name: str
) -> None:
    page = open_page(f"{report}#/examples")
    wanted = outcomes(document)[name]
    assert 0 < len(wanted) < 40
    button = page.get_by_role("button", name=f"{name} {len(wanted)}")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#example-status")).to_contain_text(f"{len(wanted)} of 40 examples")
    assert ids_shown(page) == wanted[: len(ids_shown(page))]
    expect(page).to_have_url(re.compile(f"filter={name}$"))


def test_a_search_finds_what_stands_only_in_the_details(open_page: OpenPage, report: str) -> None:
    page = open_page(f"{report}#/examples")
    page.get_by_role("searchbox").fill("NEEDLE-e17-")
    expect(page.locator("#example-status")).to_have_text("1 of 40 examples")
    assert ids_shown(page) == ["e17"]
    expect(page.locator(".search-progress")).to_be_hidden()
    page.get_by_role("searchbox").fill("(.*[")  # a text, no pattern
    expect(page.locator("#example-status")).to_have_text("0 of 40 examples")
    page.get_by_role("searchbox").fill("")
    expect(page.locator("#example-status")).to_have_text("40 of 40 examples")


def test_examples_are_sorted_by_what_they_lost(open_page: OpenPage, report: str, document: dict[str, Any]) -> None:
    page = open_page(f"{report}#/examples")
    page.get_by_label("Sort").select_option("most lost first")
    expect(page).to_have_url(re.compile("sort=loss$"))
    rows = document["examples"]["rows"]
    ordered = sorted(range(40), key=lambda place: (rows[place][3] - rows[place][2], place))
    shown = ids_shown(page)
    assert shown == [rows[place][0] for place in ordered][: len(shown)]


def test_an_address_leads_back_to_what_was_seen(open_page: OpenPage, report: str, document: dict[str, Any]) -> None:
    page = open_page(f"{report}#/examples")
    fixed = outcomes(document)["fixed"]
    page.get_by_role("button", name="Fixed").click()
    page.get_by_role("searchbox").fill("needle-e1")
    page.get_by_label("Sort").select_option("lowest baseline first")
    found = [one for one in fixed if one.startswith("e1")]
    expect(page.locator("#example-status")).to_have_text(f"{len(found)} of 40 examples")
    page.locator("#example-list .row", has_text=found[0]).first.click()
    expect(page.locator("#example-title")).to_contain_text(found[0])
    again = open_page(page.url)
    expect(again.get_by_role("button", name="Fixed")).to_have_attribute("aria-pressed", "true")
    expect(again.get_by_role("searchbox")).to_have_value("needle-e1")
    expect(again.get_by_label("Sort")).to_have_value("baseline")
    expect(again.locator("#example-status")).to_have_text(f"{len(found)} of 40 examples")
    expect(again.locator("#example-title")).to_contain_text(found[0])
    page.go_back()
    expect(page.locator(".details")).to_be_hidden()
    expect(page.get_by_role("searchbox")).to_have_value("needle-e1")


def test_an_example_opens_to_both_predictions_feedback_and_steps(
    open_page: OpenPage, report: str, document: dict[str, Any]
) -> None:
    page = open_page(f"{report}#/examples?open={outcomes(document)['fixed'][0]}")
    example = page.locator(".example")
    expect(example).to_contain_text("needle-")
    before, after = (page.locator(".side", has=page.get_by_role("heading", name=name, exact=True)) for name in
                     ("baseline C0", "result C5"))  # fmt: skip
    expect(before).to_contain_text("I believe that it is a bug")
    expect(before).to_contain_text("expected 'billing'")
    expect(after).to_contain_text("✓ 100")
    step = example.locator(".step").first
    expect(step).not_to_contain_text("Outputs")  # made when it is opened
    step.locator("summary").click()
    expect(step).to_contain_text("Outputs")
    page.get_by_role("button", name="Next example").click()
    expect(page.locator("#example-title")).not_to_contain_text(outcomes(document)["fixed"][0])
    page.keyboard.press("Escape")
    expect(page.locator(".details")).to_be_hidden()
    expect(page.locator("#example-list")).to_be_focused()


def test_any_two_versions_of_a_prompt_are_compared_word_by_word(open_page: OpenPage, report: str) -> None:
    page = open_page(f"{report}#/prompts?step=classify&from=1&to=2")
    shown = page.locator("[aria-labelledby=compared-title]")
    added = ["letter", "\nA message about money is billing, also when it is angry."]
    assert shown.locator("ins").all_inner_texts() == added
    assert shown.locator("del").all_inner_texts() == ["customer's", "message "]
    expect(shown).to_contain_text("12 words added")
    page.get_by_role("button", name="Side by side").click()
    expect(shown.locator("pre")).to_have_count(2)
    expect(shown.locator("pre").first).to_contain_text("customer's message")
    expect(shown.locator("pre").last).not_to_contain_text("customer's message")
    page.get_by_label("From").select_option("0")
    expect(page).to_have_url(re.compile("from=0"))
    version = page.locator(".version", has_text="v2")
    expect(version).to_contain_text("turn 2")
    expect(version).to_contain_text("val 65.8")
    page.get_by_role("button", name=re.compile("^v4")).click()  # with what it came from
    expect(page.locator("#compared-title")).to_contain_text("v0 → v4")


def test_the_candidates_are_a_tree_that_arrows_walk(open_page: OpenPage, report: str, document: dict[str, Any]) -> None:
    page = open_page(f"{report}#/candidates?candidate=0")
    row = page.get_by_role("treeitem").first
    row.press("ArrowRight")
    child = page.get_by_role("treeitem", name=re.compile("^C1"))
    expect(child).to_be_focused()
    expect(child).to_have_attribute("aria-level", "2")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="C5 result")).to_be_visible()
    expect(page.locator(".candidate-panel")).to_contain_text(f"from C{document['candidates'][5]['parent']}")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("treeitem").nth(document["candidates"][5]["parent"])).to_be_focused()


def test_a_difference_on_train_is_taken_on_the_examples_that_both_candidates_have(
    open_page: OpenPage, report: str, document: dict[str, Any]
) -> None:
    parent = document["candidates"][2]["parent"]
    own, before = (
        dict(zip(cells["places"], cells["scores"], strict=True))
        for cells in (document["grid"]["cells"][place] for place in (2, parent))
    )
    shared = own.keys() & before.keys()
    difference = sum(own[place] - before[place] for place in shared) / len(shared)
    assert 0 < len(shared) < len(own)
    page = open_page(f"{report}#/candidates?candidate=2")
    row = page.locator(".candidate-panel tr", has_text="train")
    expect(row.locator("td").last).to_have_text(f"{difference:+.1f} on {len(shared)}".replace("-", "\u2212"))


def test_a_cell_of_the_grid_opens_its_candidate_and_its_example(open_page: OpenPage, report: str) -> None:
    page = open_page(f"{report}#/candidates")
    grid = page.get_by_role("grid", name="Scores of the candidates")
    grid.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    expect(page.locator("#grid-cell")).to_contain_text("C1 on e39")
    page.keyboard.press("Enter")
    expect(page.locator("#candidate-title")).to_have_text("C1")
    expect(page.get_by_role("heading", name="Example e39")).to_be_visible()
    expect(page.locator(".example")).to_contain_text("needle-e39-end")
    grid.click(position={"x": 48 + 14 * 2 + 5, "y": 20 + 20 * 4 + 5})  # the third column of the fifth row
    expect(page).to_have_url(re.compile("candidate=4&example=e2$"))
    expect(page.get_by_role("heading", name="Example e2")).to_be_visible()


def test_the_turns_fold_and_tell_of_notes_deaths_and_runs(open_page: OpenPage, report: str) -> None:
    page = open_page(f"{report}#/turns")
    turns = page.locator(".turn")
    expect(turns).to_have_count(5)
    expect(turns.nth(1)).to_contain_text("The kernel died")
    expect(turns.nth(2)).to_contain_text("Look at the refunds first.")
    expect(turns.nth(2)).to_contain_text("Paused by a person before this turn for 42.0 s")
    code = turns.first.locator(".code")
    expect(code.locator(".code-tool").first).to_have_text("run_data")
    expect(code.locator(".code-comment")).to_have_text("# Turn 1: look at what fails, then try a rule.")
    expect(turns.first.locator(".output")).to_have_count(0)  # long output is folded
    page.get_by_role("button", name="Unfold all").click()
    expect(turns.first.locator(".output")).to_contain_text("e17 0.0")
    page.get_by_role("button", name="Fold all", exact=True).click()
    expect(code).to_be_hidden()
    page.get_by_role("link", name="Newest: turn 5").click()
    expect(turns.nth(4)).to_be_in_viewport()
    turns.first.get_by_role("link", name=re.compile("^r3")).click()
    expect(page).to_have_url(re.compile("candidate=1$"))


def test_the_setup_tells_what_confined_the_kernel_and_how_to_repeat_it(open_page: OpenPage, report: str) -> None:
    page = open_page(f"{report}#/setup")
    confined = page.get_by_role("region", name="What confined the agent's kernel")
    expect(confined).to_contain_text("✓ no network a network namespace")
    expect(confined).to_contain_text("✕ cpu capped no limit was asked for")
    expect(page.get_by_role("region", name="Versions")).to_contain_text("dspy3.4.1")
    expect(page.get_by_role("region", name="How to repeat it")).to_contain_text("RLMDocstringOptimizer(")
    expect(page.get_by_role("region", name="Task")).to_contain_text("train 40, val 24, test 120")


def test_only_rows_in_sight_exist(open_page: OpenPage, tmp_path: Path) -> None:
    many = report_data.document(examples=2000, candidates=3, turns=1)
    path = report_data.page(many, report_data.examples_of(many, trace_chars=0), tmp_path / "many.html")
    page = open_page(f"{path.as_uri()}#/examples")
    rows = page.locator("#example-list .row:not(.row-head)")
    assert 10 < rows.count() < 80
    grid = page.get_by_role("grid", name="Examples of train")
    expect(grid).to_have_attribute("aria-rowcount", "2001")
    grid.focus()
    page.keyboard.press("End")
    expect(page.locator("#example-list .row.active")).to_contain_text("e1999")
    page.keyboard.press("Enter")
    expect(page.locator(".example")).to_contain_text("needle-e1999-end")  # of the last chunk
    assert rows.count() < 80


def test_a_list_stands_where_it_was_left(open_page: OpenPage, tmp_path: Path) -> None:
    many = report_data.document(examples=300, candidates=2, turns=1)
    path = report_data.page(many, report_data.examples_of(many, trace_chars=0), tmp_path / "many.html")
    page = open_page(f"{path.as_uri()}#/examples", width=390)
    grid = page.get_by_role("grid", name="Examples of train")
    row = page.locator("#example-list .row.active")
    grid.press("End")
    grid.press("Enter")  # on a phone the example takes the place of the list
    expect(grid).to_be_hidden()
    page.keyboard.press("Escape")
    expect(grid).to_be_focused()
    expect(row).to_be_in_viewport()
    expect(row).to_contain_text("e299")
    scrolled = grid.evaluate("(list) => list.scrollTop")
    page.get_by_role("link", name="Setup").click()
    page.get_by_role("link", name="Examples").click()
    assert grid.evaluate("(list) => list.scrollTop") == scrolled > 1000


def test_of_a_file_that_was_cut_what_is_there_is_shown(open_page: OpenPage, tmp_path: Path) -> None:
    document = report_data.document(examples=120, candidates=2, turns=1)
    path = report_data.page(document, report_data.examples_of(document, trace_chars=5000), tmp_path / "cut.html")
    text = path.read_text()
    path.write_text(text[: text.index('id="examples-1"') + 500])
    page = open_page(f"{path.as_uri()}#/examples?open=e3")
    expect(page.locator(".example")).to_contain_text("needle-e3-end")
    page.goto(f"{path.as_uri()}#/examples?open=e119")
    expect(page.get_by_role("alert")).to_contain_text("The example could not be read")
    page.get_by_role("searchbox").fill("needle-e3-")
    expect(page.locator("#example-status")).to_contain_text("1 of 120 examples; the search ended early")


def test_an_optimization_that_goes_on_shows_its_best_so_far(open_page: OpenPage, tmp_path: Path) -> None:
    document = report_data.document(finished=False, turns=2)
    document["turns"][-1]["output"] = None
    document["task"]["branch"] = {"store": "runs-0001.sqlite", "run_id": "r3", "units": None, "begun": True}
    path = report_data.page(document, report_data.examples_of(document), tmp_path / "running.html")
    page = open_page(path.as_uri())
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator(".head")).to_contain_text("The best candidate so far is C5")
    branch = page.locator("#branched-from")
    expect(branch).to_have_text("A branch of optimization 1, run r3: it began with the prompts of that run.")
    expect(page.locator(".split")).to_have_count(2)
    page.goto(f"{path.as_uri()}#/candidates")
    expect(page.get_by_role("treeitem", name=re.compile("^C5 turn 5 best"))).to_be_visible()
    page.goto(f"{path.as_uri()}#/turns")
    expect(page.locator(".turn").nth(1)).to_contain_text("Its code is running.")
    expect(page.locator(".waiting")).to_contain_text("Look at the refunds first.")  # nobody has read it yet


def page_of(document: dict[str, Any], directory: Path) -> str:
    return report_data.page(document, report_data.examples_of(document), directory / "page.html").as_uri()


def test_a_figure_is_rounded_as_in_the_verdict_beside_it(open_page: OpenPage, tmp_path: Path) -> None:
    document = report_data.document()
    test = document["result"]["splits"]["test"]
    test |= {"baseline": 31.25, "result": 68.75, "difference": 37.5, "interval": [6.25, 62.349999999999994]}
    words = f"{31.25:.1f} -> {68.75:.1f} (95% interval {6.25:+.1f} to {62.349999999999994:+.1f})"
    assert words == "31.2 -> 68.8 (95% interval +6.2 to +62.3)"
    card = open_page(page_of(document, tmp_path)).locator(".split", has_text="verdict")
    expect(card).to_contain_text("from 31.2")
    expect(card).to_contain_text("68.8 +37.5 points")
    expect(card).to_contain_text("95% interval +6.2 to +62.3;")


@pytest.mark.parametrize("finished", [False, True])
def test_the_unchanged_program_is_not_compared_with_itself(open_page: OpenPage, tmp_path: Path, finished: bool) -> None:
    document = report_data.document(finished=finished)
    document["candidates"][-1]["is_result"] = False
    document["candidates"][0]["is_result"] = finished
    if not finished:
        document["so_far"]["best"] = 0
    page = open_page(page_of(document, tmp_path))
    val = page.locator(".split", has_text="24 examples")
    expect(val).to_contain_text("54.2 baseline")
    expect(val).to_contain_text("The unchanged prompts are given back." if finished else "Nothing is better yet.")
    expect(page.locator(".splits")).not_to_contain_text("interval")


def test_the_chart_has_a_few_ticks_at_whole_units(open_page: OpenPage, tmp_path: Path) -> None:
    document = report_data.document(finished=False)
    document["runs"] = [{**run, "spent": 0} for run in document["runs"][:2]]
    document["best_so_far"], document["budget"]["limit"] = [], 24
    page = open_page(page_of(document, tmp_path))
    page.evaluate(
        "() => { const draw = CanvasRenderingContext2D.prototype.fillText; window.drawn = [];"
        " CanvasRenderingContext2D.prototype.fillText = function (text, ...at)"
        " { window.drawn.push(text); draw.call(this, text, ...at); } }"
    )
    page.get_by_label("Theme").select_option("dark")
    ticks = [*("0", "5", "10", "15", "20", "units spent"), *("0", "25", "50", "75", "100", "score")]
    assert sorted(page.evaluate("drawn.filter((text) => text)")) == sorted(ticks)


def test_a_version_of_a_prompt_shows_the_scores_of_the_result_that_has_it(open_page: OpenPage, tmp_path: Path) -> None:
    document = report_data.document()
    first, result = document["candidates"][1], document["candidates"][5]
    result |= {"prompts": {**first["prompts"], "reply": "Be brief."}, "changed": ["reply"]}
    page = open_page(f"{page_of(document, tmp_path)}#/prompts?step=classify")
    version = page.locator(".version", has_text="result")
    expect(version).to_contain_text("turn 1, C1 and 1 more candidate")
    expect(version.locator(".version-facts").last).to_have_text(
        f"C5: val 83.3 n 24train {result['scores']['train']['score']:.1f} n 40"
    )


def test_what_waits_for_the_agent_stands_after_the_newest_turn(open_page: OpenPage, tmp_path: Path) -> None:
    document = report_data.document(finished=False, turns=5)
    document["asked"] = {"pausing": True, "notes": ["Then the <b>invoices</b>."]}
    page = open_page(f"{page_of(document, tmp_path)}#/turns", width=390)
    expect(page.locator("#turn-5")).not_to_be_in_viewport()
    page.get_by_role("link", name="Newest: turn 5").click()
    expect(page).to_have_url(re.compile("turns\\?turn=5$"))
    expect(page.get_by_role("heading", name="Turn 5")).to_be_in_viewport()
    waiting = page.locator(".waiting")
    expect(waiting).to_contain_text("Then the <b>invoices</b>.")
    expect(waiting).to_contain_text("A pause is asked for: the agent waits before its next turn")
    page.evaluate("scrollTo(0, 0)")
    page.get_by_role("link", name="Newest: turn 5").click()  # to the address where it is already
    expect(page.get_by_role("heading", name="Turn 5")).to_be_in_viewport()


@pytest.mark.parametrize("by_itself", [False, True])
def test_a_branch_says_of_what_it_is_one_and_what_begins_it(
    open_page: OpenPage, tmp_path: Path, by_itself: bool
) -> None:
    document = report_data.document(finished=False)
    document["state"] = "interrupted"
    document["task"]["branch"] = {
        "store": "runs-0003.sqlite", "run_id": "r7", "units": None, "begun": False, "begins_by_itself": by_itself,
    }  # fmt: skip
    head = open_page(page_of(document, tmp_path)).locator("body")
    expect(head.locator("#state")).to_have_text("not begun")
    expect(head.locator("#branch")).to_be_visible()
    expect(head.locator("#branched-from")).to_have_text(
        "A branch of optimization 3, run r7: it begins with the prompts of that run."
    )
    expect(head.locator(".lead")).to_contain_text(
        "begins as soon as the optimization that it was branched from has ended" if by_itself else "Call compile("
    )


def test_one_that_has_just_begun_has_little_to_show(open_page: OpenPage, tmp_path: Path) -> None:
    document = report_data.document(finished=False, candidates=1, examples=3, turns=0)
    nothing: dict[str, Any] = {
        "runs": [], "best_so_far": [], "so_far": {"splits": {}, "best": None}, "usage": {}, "versions": {},
        "notes": [], "pauses": [], "deaths": [], "confinement": None, "seconds": {},
    }  # fmt: skip
    document.update(nothing)
    document["candidates"][0] |= {"runs": [], "scores": {"train": None, "val": None, "test": None}}
    document["grid"]["cells"] = [{"places": [], "scores": []}]
    document["examples"]["compared_with"] = None
    for row in document["examples"]["rows"]:
        row[2:5] = None, None, None
    path = report_data.page(document, report_data.examples_of(document), tmp_path / "begun.html")
    page = open_page(path.as_uri())
    expect(page.locator(".head")).to_contain_text("the baseline is being measured")
    for view in VIEWS[1:]:
        page.goto(f"{path.as_uri()}#/{view}")
        expect(page.locator("#views [aria-current]")).to_contain_text(view.partition("?")[0].title())


def test_a_picture_is_drawn_when_it_is_asked_for(open_page: OpenPage, tmp_path: Path) -> None:
    point = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    document = report_data.document(examples=1)
    (example,) = report_data.examples_of(document)
    broken, drawing = f"data:image/jpeg;base64,{'A' * 80}", f"data:image/svg+xml;base64,{'A' * 2048}"
    example["inputs"] = {"pages": [{"url": f"data:image/png;base64,{point}"}, {"url": broken}, {"url": drawing}]}
    path = report_data.page(document, [example], tmp_path / "report.html")
    page = open_page(f"{path.as_uri()}#/examples?open={example['id']}")
    inputs = page.locator(".example-part").first
    expect(inputs.locator("pre")).to_contain_text('"url": "<image/png, 1 KB>"')
    expect(inputs.get_by_text("image/svg+xml, 2 KB", exact=True)).to_be_visible()
    expect(inputs.locator("img")).to_have_count(0)
    inputs.get_by_role("button", name="Show the picture (image/png, 1 KB)").press("Enter")
    expect(inputs.get_by_role("img", name="inputs, pages (image/png, 1 KB)")).to_be_focused()
    inputs.get_by_role("button", name="Show the picture (image/jpeg, 1 KB)").click()
    expect(inputs.get_by_text("no picture that can be shown (image/jpeg, 1 KB)")).to_be_visible()


def test_of_many_changed_prompts_the_head_names_some(open_page: OpenPage, tmp_path: Path) -> None:
    document = report_data.document(examples=1, candidates=2)
    document["task"]["steps"] = steps = [f"hop[{number}]" for number in range(30)]
    for index, candidate in enumerate(document["candidates"]):
        candidate["prompts"] = {step: f"Prompt {index}." for step in steps}
    page = open_page(report_data.page(document, report_data.examples_of(document), tmp_path / "report.html").as_uri())
    facts = page.locator(".facts")
    expect(facts.locator(".chip")).to_have_count(8)
    facts.get_by_text("22 more", exact=True).click()
    expect(facts.locator(".chip")).to_have_count(30)
