"""Data that would like to be more than data: the page shows it, and no more than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import report_data
from browser import OpenPage

pytest.importorskip("playwright", reason="playwright does not support this Python yet")
from playwright.sync_api import Page, expect

EVIL = (
    "</script><script>window.owned = 1</script><img src=https://evil.example/x onerror='window.owned = 1'>"
    "<!-- {{ 7 * 7 }} ${7 * 7} \x1b[31mred\x1b]0;title\x07 \u202egnp.exe\u2066 \u200b \ud800 \U000e0041"
)
# What says how the document hangs together, and what is no text of others.
_OURS = {"state", "split", "verdict", "verdict_split", "run_id", "runs", "format"}
_NAMED_BY_OTHERS = {
    "prompts", "settings", "versions", "in_force", "missing", "inputs", "expected", "outputs", "predicted"
}  # fmt: skip


def poisoned(value: Any, key: str = "") -> Any:
    """The same, with each text of others followed by `EVIL`, names of fields too."""
    if isinstance(value, str):
        return value if key in _OURS else value + EVIL
    if isinstance(value, list):
        return [poisoned(one, key) for one in value]
    if isinstance(value, dict):
        named = key in _NAMED_BY_OTHERS
        return {name + EVIL if named else name: poisoned(one, name) for name, one in value.items()}
    return value


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    document = report_data.document(examples=12, candidates=4, turns=3)
    runs = document["runs"]
    document = poisoned({key: value for key, value in document.items() if key != "runs"}) | {"runs": runs}
    examples = [poisoned(one) for one in report_data.examples_of(report_data.document(examples=12, candidates=4))]
    for example in examples:
        example["inputs"]["__proto__"] = {"constructor": "text"}
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    return report_data.page(document, examples, path).as_uri()


def check_only_shown(page: Page) -> None:
    assert page.evaluate("window.owned === undefined")
    assert page.locator("main :is(img, iframe, object, embed, script, style, form, base, link)").count() == 0
    assert page.locator("main [onclick], main [onerror], main [style*=url]").count() == 0


@pytest.mark.parametrize("view", ["", "candidates", "prompts", "examples", "turns", "setup"])
def test_no_data_becomes_part_of_the_page(open_page: OpenPage, report: str, view: str) -> None:
    page = open_page(f"{report}#/{view}")
    if view in ("", "prompts", "turns", "setup"):
        expect(page.locator(".view:not([hidden])").get_by_text("window.owned = 1").first).to_be_attached()
    if view == "examples":
        page.locator("#example-list .row:not(.row-head)").first.click()
        expect(page.locator(".example")).to_contain_text("__proto__")
        page.get_by_role("button", name="Open or fold all steps").first.click()
        expect(page.locator(".step").first).to_contain_text("Outputs")
        page.reload()  # the id with all its characters is in the address
        expect(page.locator(".example")).to_be_visible()
    page.locator(".view:not([hidden]) details").evaluate_all("(folds) => folds.forEach((fold) => (fold.open = true))")
    check_only_shown(page)


def test_what_cannot_be_seen_is_shown_by_its_name(open_page: OpenPage, report: str) -> None:
    page = open_page(f"{report}#/turns")
    marks = page.locator(".reasoning").first.locator(".control").all_inner_texts()
    assert marks == ["ESC", "ESC", "BEL", "U+202E", "U+2066", "ZWSP", "U+D800", "U+E0041"]


def test_the_direction_of_a_text_stays_within_it(open_page: OpenPage, report: str) -> None:
    page = open_page(f"{report}#/examples")
    page.locator("#example-list .row:not(.row-head)").first.click()
    for place, style in ((".example .text", "plaintext"), ("#example-list .row-text .datum:last-child", "isolate")):
        found = page.locator(place).first
        assert found.evaluate("(node) => getComputedStyle(node).unicodeBidi") == style
        expect(found).to_have_attribute("dir", "auto")


def test_the_policy_of_the_page_stops_what_the_page_would_not(open_page: OpenPage, report: str) -> None:
    """A script that gets in all the same does not run and asks nobody."""
    page = open_page(report, allow=["Content Security Policy", "Content-Security-Policy"])
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.owned = 1";
          document.body.append(script);
          const text = document.createElement("p");
          text.setAttribute("onclick", "window.owned = 1");
          document.body.append(text);
          text.click();
        }"""
    )
    assert page.evaluate("window.owned === undefined")
    assert page.evaluate("fetch('https://127.0.0.1:9/').then(() => 'asked', () => 'refused')") == "refused"


def test_megabytes_in_one_field_are_shown_in_parts(open_page: OpenPage, tmp_path: Path) -> None:
    document = report_data.document(examples=3, candidates=3, turns=1)
    examples = report_data.examples_of(document)
    examples[1]["inputs"]["message"] = "0123456789" * 500_000
    document["candidates"][2]["prompts"]["classify"] = "word " * 300_000
    document["turns"][0]["output"] = "line\n" * 20_000
    path = report_data.page(document, examples, tmp_path / "large.html")
    page = open_page(f"{path.as_uri()}#/examples?open=e1")
    message = page.locator(".example .long").first
    expect(message).to_contain_text("4,000 of 5,000,000 characters")
    message.get_by_role("button", name="Show 40,000 more").click()
    expect(message).to_contain_text("44,000 of 5,000,000 characters")
    page.get_by_role("searchbox").fill("90123456789")
    expect(page.locator("#example-status")).to_have_text("1 of 3 examples")
    for view in ("prompts", "candidates?candidate=2", "turns"):
        page.goto(f"{path.as_uri()}#/{view}")
        expect(page.locator(".view:not([hidden])")).to_be_visible()
        assert page.evaluate("document.getElementById('main').textContent.length") < 200_000
