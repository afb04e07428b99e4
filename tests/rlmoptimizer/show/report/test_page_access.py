"""The page for everybody: by keyboard, by a screen reader, in both themes, on a phone and on a wide screen."""

from __future__ import annotations

import re
from typing import Any

import pytest
import report_data
from browser import OpenPage

pytest.importorskip("playwright", reason="playwright does not support this Python yet")
from playwright.sync_api import Page, expect

VIEWS = ["", "candidates?candidate=3&example=e2", "prompts", "examples?open=e3", "turns", "setup"]

_CONTRASTS = """() => {
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, part) => value * a + below[part] * (1 - a));
  const ground = (node) => {
    if (!node) return [255, 255, 255];
    const own = rgba(getComputedStyle(node).backgroundColor);
    return own.length === 4 && own[3] === 0 ? ground(node.parentElement) : over(own, own[3] === undefined ? own : ground(node.parentElement));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest(".unseen, script, style, .skip, option")) continue;
    const style = getComputedStyle(node);
    const below = ground(node);
    const text = over(rgba(node.closest("svg") ? style.fill : style.color), below);
    const [one, other] = [light(text), light(below)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)}: ${walker.currentNode.data.trim().slice(0, 40)} (${node.className})`);
  }
  return found;
}"""  # noqa: E501 - a script

_FOCUSED = """() => {
  const node = document.activeElement;
  if (node === document.body) return null;
  const box = node.getBoundingClientRect();
  const outline = getComputedStyle(node).outlineStyle;
  const key = node.id || node.dataset.key || node.getAttribute("href") || node.textContent.slice(0, 40);
  return { key, seen: box.width > 0 && box.height > 0, outlined: outline !== "none", tag: node.tagName };
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    document = report_data.document()
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report_data.page(document, report_data.examples_of(document), path).as_uri()


def go(page: Page, report: str, view: str) -> None:
    page.goto(f"{report}#/{view}")
    expect(page.locator("#views [aria-current]")).to_contain_text(view.partition("?")[0].title() or "Overview")
    if "example=" in view or "open=" in view:
        expect(page.locator(".view:not([hidden]) .example")).to_be_visible()


def nameless(page: Page) -> list[str]:
    """What can have the focus and has no name that a screen reader could say."""
    client = page.context.new_cdp_session(page)
    nodes: list[dict[str, Any]] = client.send("Accessibility.getFullAXTree")["nodes"]
    found: list[str] = []
    for node in nodes:
        role = node.get("role", {}).get("value")
        states = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
        named = node.get("name", {}).get("value", "").strip()
        if not node.get("ignored") and states.get("focusable") and role not in ("RootWebArea", "main") and not named:
            found.append(f"{role}: {node}")
    return found


@pytest.mark.parametrize(("theme", "width"), [("light", 1400), ("dark", 390), ("dark", 1400), ("light", 390)])
def test_every_view_is_readable_named_and_as_wide_as_the_screen(
    open_page: OpenPage, report: str, theme: str, width: int
) -> None:
    page = open_page(report, theme=theme, width=width)
    for view in VIEWS:
        go(page, report, view)
        page.locator("details:visible").evaluate_all("(folds) => folds.forEach((fold) => (fold.open = true))")
        assert page.evaluate(_CONTRASTS) == [], f"hard to read in {view}"
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, f"{view} is too wide"
        assert nameless(page) == [], f"without a name in {view}"


def test_the_theme_is_the_systems_until_it_is_chosen(open_page: OpenPage, report: str) -> None:
    page = open_page(report, theme="dark")

    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    dark = ground()
    page.emulate_media(color_scheme="light")
    light = ground()
    assert dark != light
    page.get_by_label("Theme").select_option("Dark")
    assert ground() == dark
    page.emulate_media(color_scheme="dark")
    page.get_by_label("Theme").select_option("Light")
    assert ground() == light


@pytest.mark.parametrize("view", ["", "candidates?candidate=3&example=e2", "prompts", "examples?open=e3", "turns"])
def test_the_tab_key_reaches_all_and_is_caught_by_nothing(open_page: OpenPage, report: str, view: str) -> None:
    page = open_page(report)
    go(page, report, view)
    page.evaluate("document.activeElement.blur(); getSelection().removeAllRanges()")
    page.locator("body").evaluate("(body) => { body.tabIndex = -1; body.focus(); body.removeAttribute('tabindex'); }")
    passed: list[str] = []
    for _ in range(120):
        page.keyboard.press("Tab")
        focused = page.evaluate(_FOCUSED)
        if focused is None:
            break
        assert focused["seen"], focused
        assert focused["outlined"], focused
        passed.append(focused["key"])
    else:
        pytest.fail(f"the end of the page was not reached: {passed}")
    assert passed[:3] == ["skip", "theme", "#/"]
    stops = {
        "": ["chart"],
        "candidates": ["lineage-3", "grid", "grid-order"],
        "prompts": ["prompt-step", "prompt-from", "prompt-to", "version-0"],
        "examples": ["Filter:all", "example-search", "example-sort", "example-list", "Close the example"],
        "turns": ["fold-all"],
    }[view.partition("?")[0]]
    assert [stop for stop in stops if stop not in passed] == []


def test_an_example_is_found_read_and_left_by_keyboard_alone(open_page: OpenPage, report: str) -> None:
    page = open_page(report)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.get_by_role("link", name="Examples").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Fixed").focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Fixed")).to_be_focused()  # drawn anew, with the focus kept
    page.get_by_role("grid", name="Examples of train").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#example-list")).to_have_attribute("aria-activedescendant", "example-list-1")
    page.keyboard.press("Enter")
    expect(page.locator("#example-title")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("grid", name="Examples of train")).to_be_focused()
    expect(page.locator("#example-list")).to_have_attribute("aria-activedescendant", "example-list-1")


def test_a_screen_reader_is_told_what_the_page_shows(open_page: OpenPage, report: str) -> None:
    page = open_page(report)
    for role in ("banner", "navigation", "main"):
        expect(page.get_by_role(role)).to_have_count(1)
    page.get_by_role("link", name="Turns").click()
    expect(page.get_by_role("status").filter(has_text="Turns shown")).to_have_count(1)
    expect(page).to_have_title(re.compile("Turns$"))
    page.get_by_role("link", name="Examples").click()
    page.get_by_role("button", name="Failed").click()
    expect(page.get_by_role("status").filter(has_text="of 40 examples")).to_have_count(1)


def test_nothing_moves_for_those_who_asked_for_less_motion(open_page: OpenPage, report: str) -> None:
    page = open_page(report)
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("document.getAnimations().length") == 0
