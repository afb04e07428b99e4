"""The live page in a browser: its buttons, what they say, and what new data leaves as it was."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import OpenPage
from live_pages import serving
from stored_optimization import AFTER, BEFORE, add_run, finish, setup_of, write_small

from rlmoptimizer.outcome.ending import AgentOutcome
from rlmoptimizer.show.live_page.optimizations import Optimizations
from rlmoptimizer.show.live_page.server import LiveServer
from rlmoptimizer.steering.requests import MOST_NOTE_CHARS, Requests
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

BUTTONS = ("pause", "note", "stop", "branch")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with write_small(tmp_path, ends=False) as opened:
        yield opened


@pytest.fixture
def server(store: RunStore) -> Iterator[LiveServer]:
    with serving(store.path) as started:
        yield started


@pytest.fixture
def page(server: LiveServer, open_page: OpenPage) -> Page:
    opened = open_page(server.address)
    expect(button(opened, "pause")).to_be_enabled()
    return opened


def button(page: Page, name: str) -> Locator:
    return page.locator(f"#live-{name}")


def expect(what: Any) -> Any:
    from playwright.sync_api import expect  # here, because not every Python has it

    return expect(what)


def said(page: Page) -> Locator:
    return page.locator(".live-said")


def test_pause_and_go_on(page: Page, store: RunStore) -> None:
    expect(button(page, "pause")).to_have_text("Pause")
    button(page, "pause").click()
    expect(said(page)).to_contain_text("The agent will wait before its next turn")
    expect(button(page, "pause")).to_have_text("Go on")
    expect(page.locator("#live-line")).to_contain_text("A pause is asked for")
    assert Requests(store.path).pausing
    button(page, "pause").click()
    expect(said(page)).to_contain_text("The agent goes on")
    expect(button(page, "pause")).to_have_text("Pause")
    assert not Requests(store.path).pausing


def test_a_note_is_written_with_the_keyboard_alone(page: Page, store: RunStore) -> None:
    button(page, "pause").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Write a note to the agent")
    expect(dialog).to_contain_text("The agent reads it before its next turn, marked as yours")
    field = dialog.get_by_label("Your words to the agent")
    expect(field).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("The note is empty")
    field.focus()
    page.keyboard.type("Look at the <b>refunds</b> first.")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(said(page)).to_contain_text("The agent will get the note with its next turn")
    expect(button(page, "note")).to_be_focused()
    assert [note.text for note in Requests(store.path).notes()] == ["Look at the <b>refunds</b> first."]
    expect(page.locator("#live-line")).to_contain_text("1 note waits for the agent's next turn")
    page.locator("#live-line").get_by_role("link", name="Read").click()
    expect(page.locator(".waiting")).to_contain_text("Look at the <b>refunds</b> first.")
    assert Requests(store.path).take_notes()
    expect(page.locator("#live-line")).to_be_hidden()


def test_the_page_takes_as_long_notes_as_the_store(page: Page) -> None:
    button(page, "note").click()
    assert page.get_by_label("Your words to the agent").get_attribute("maxlength") == str(MOST_NOTE_CHARS)


def test_stop_is_asked_once_more(page: Page, store: RunStore) -> None:
    button(page, "stop").click()
    dialog = page.get_by_role("dialog", name="Stop and take the best?")
    expect(dialog).to_contain_text("This cannot be undone")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button(page, "stop")).to_be_focused()
    assert not Requests(store.path).stopping
    button(page, "stop").click()
    dialog.get_by_role("button", name="Stop", exact=True).click()
    expect(said(page)).to_contain_text("The agent stops")
    for name in ("pause", "note", "stop"):
        expect(button(page, name)).to_have_attribute("aria-disabled", "true")
        expect(button(page, name)).to_have_attribute("title", "This optimization is about to stop.")
    assert Requests(store.path).stopping


def test_a_branch_is_made_of_any_run_and_can_be_followed(page: Page, store: RunStore, server: LiveServer) -> None:
    button(page, "branch").click()
    dialog = page.get_by_role("dialog", name="Branch from a run")
    expect(dialog).to_contain_text("The one that runs makes way for it")
    runs = dialog.get_by_label("Begin with the prompts of")
    expect(runs.locator("option")).to_have_count(4)
    expect(runs).to_have_value("r4")  # of the best prompts so far
    runs.select_option("r3")
    expect(dialog.get_by_label("What is left: 24 units")).to_be_checked()
    dialog.get_by_label("A new budget, in units:").check()
    units = dialog.get_by_label("New budget in units")
    units.fill("0")
    dialog.get_by_role("button", name="Branch", exact=True).click()
    expect(dialog.get_by_role("alert")).to_contain_text("Units must be from 1")
    units.fill("40")
    dialog.get_by_label("A note to its agent").fill("Shorter.")
    dialog.get_by_role("button", name="Branch", exact=True).click()
    expect(said(page)).to_contain_text("optimization 2 begins with these prompts")
    path = store.path.with_name("runs-0002.sqlite")
    with StoreReader.open(path) as branch:
        described = (branch.setup() or {})["branch"]
        assert (described["store"], described["run_id"], described["units"]) == (store.path.name, "r3", 40)
        assert branch.prompts() == AFTER
    assert [note.text for note in Requests(path).notes()] == ["Shorter."]
    assert Requests(store.path).branching
    page.get_by_role("link", name="Follow it").click()
    expect(page).to_have_url(re.compile(r"/2/$"))
    expect(page.locator("#state")).to_have_text("not begun")
    expect(page.locator("#live-line")).to_contain_text("It begins as soon as the optimization that it was branched")
    expect(button(page, "note")).to_be_enabled()
    store.close()  # as if its process had died
    expect(page.locator("#live-line")).to_contain_text("Call compile(..., resume=True)")


def test_a_branch_is_offered_of_what_the_agent_has_found_also_where_val_prefers_the_unchanged_prompts(
    page: Page, store: RunStore
) -> None:
    add_run(store, "val", [0, 0, 0, 0], AFTER)
    add_run(store, "val", [1, 1, 1, 1], BEFORE)
    expect(page.locator(".lead")).to_contain_text("No candidate is better")
    button(page, "branch").click()
    runs = page.get_by_label("Begin with the prompts of")
    expect(runs).to_have_value("r5")
    offered = [text.partition(":")[0] for text in runs.locator("option").all_inner_texts()]
    assert offered == ["r5", "r4", "r3", "r6", "r2", "r1"]


def test_what_has_ended_can_only_be_branched(page: Page, store: RunStore) -> None:
    finish(store)
    for name in ("pause", "note", "stop"):
        expect(button(page, name)).to_have_attribute("aria-disabled", "true")
    button(page, "note").focus()
    page.keyboard.press("Enter")
    expect(said(page)).to_contain_text("This optimization has ended")
    expect(page.get_by_role("dialog")).to_have_count(0)
    button(page, "branch").click()
    expect(page.get_by_role("dialog")).to_contain_text("It waits for compile(..., resume=True)")


def test_two_pages_see_what_either_does(page: Page, server: LiveServer, open_page: OpenPage) -> None:
    other = open_page(server.address, width=390, theme="dark")
    button(other, "pause").click()
    expect(button(page, "pause")).to_have_text("Go on")
    button(page, "pause").click()
    expect(button(other, "pause")).to_have_text("Pause")
    button(other, "branch").click()
    assert other.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_new_data_come_by_themselves_and_leave_the_reader_where_they_are(
    page: Page, store: RunStore, wait_until: Callable[..., None]
) -> None:
    page.set_viewport_size({"width": 1000, "height": 400})
    page.goto(page.url.partition("#")[0] + "#/examples?open=3")
    expect(page.get_by_role("heading", name="Predicted")).to_be_visible()
    page.mouse.wheel(0, 200)
    wait_until(lambda: page.evaluate("window.scrollY > 0"), "the page scrolls")
    button(page, "pause").focus()
    select = "found => { getSelection().selectAllChildren(found); return String(getSelection()) }"
    text = page.get_by_role("heading", name="Predicted").evaluate(select)
    before = page.evaluate("[window.scrollY, location.hash]")
    page.evaluate("document.addEventListener('drawn', () => { document.body.dataset.drawn = 'yes' })")
    store.record_iteration("More.", "print(1)", "1", seconds=1.0)
    expect(page.locator("#views")).to_contain_text("Turns 2")
    wait_until(lambda: page.evaluate("document.body.dataset.drawn === 'yes'"), "the page is drawn")
    assert page.evaluate("[window.scrollY, location.hash]") == before
    assert page.evaluate("document.activeElement.id") == "live-pause"
    assert page.evaluate("String(getSelection())") == text == "Predicted"
    expect(page.get_by_role("heading", name="Predicted")).to_be_visible()


def test_a_hidden_page_lets_go_and_catches_up(
    page: Page, store: RunStore, server: LiveServer, wait_until: Callable[..., None]
) -> None:
    hide = "is => { Object.defineProperty(document, 'hidden', { get: () => is, configurable: true });\
        document.dispatchEvent(new Event('visibilitychange')) }"
    page.evaluate(hide, True)
    changes: Any = server._application._changes[1]
    wait_until(lambda: changes._listeners == 0, "the page lets go")
    add_run(store, "train", [1.0, 1.0], AFTER)
    finish(store)
    page.evaluate(hide, False)
    expect(page.locator("#state")).to_have_text("finished")
    expect(button(page, "pause")).to_have_attribute("aria-disabled", "true")


def test_a_server_that_ends_is_told(store: RunStore, open_page: OpenPage) -> None:
    with serving(store.path) as server:
        page = open_page(server.address, allow=("ERR_",))
        expect(button(page, "pause")).to_be_enabled()
    expect(page.locator("#live-line")).to_contain_text("The connection to the page's server is lost")
    for name in BUTTONS:
        expect(button(page, name)).to_have_attribute("aria-disabled", "true")
    button(page, "stop").click(force=True)
    expect(said(page)).to_contain_text("not connected")
    expect(page.locator("#live-line")).to_contain_text("start it again with rlmoptimizer view")


def test_a_page_that_has_lost_its_server_catches_up_when_it_is_back(store: RunStore, open_page: OpenPage) -> None:
    with serving(store.path) as server:
        page = open_page(server.address, allow=("ERR_",))
        expect(button(page, "pause")).to_be_enabled()
    expect(page.locator("#live-line")).to_contain_text("is lost")
    finish(store)
    with LiveServer(Optimizations(store.path), port=server.port) as again:
        access: Any = again._server.config.app
        access._secret = server.address.split("/")[3].encode()  # as if it had only not been heard
        thread = threading.Thread(target=again.run)
        thread.start()
        try:
            expect(page.locator("#state")).to_have_text("finished")
            expect(page.locator("#live-line")).to_be_hidden()
        finally:
            again.stop()
            thread.join()


def test_a_page_of_what_has_not_begun_waits_for_it(tmp_path: Path, open_page: OpenPage) -> None:
    with RunStore.create_in(tmp_path) as store, serving(store.path) as server:
        page = open_page(server.address, wait=False, allow=("409",))
        expect(page.get_by_role("alert").first).to_contain_text("has not begun")
        store.record_setup(setup_of(6, 4))
        expect(page.locator("#state")).to_have_text("running")
        expect(page.get_by_text("has not begun")).to_have_count(0)


def test_once_the_agent_has_ended_nothing_more_is_asked_of_it(page: Page, store: RunStore) -> None:
    AgentOutcome(dict(AFTER), None, "It is better.", "submitted").record(store)
    for name in ("pause", "note", "stop"):
        expect(button(page, name)).to_have_attribute("aria-disabled", "true")
    button(page, "stop").click(force=True)
    expect(said(page)).to_contain_text("only its result is being measured")


def test_a_note_that_was_not_sent_is_still_there(page: Page) -> None:
    button(page, "note").click()
    page.keyboard.type("Look at the refunds")
    page.keyboard.press("Escape")
    button(page, "note").click()
    expect(page.get_by_label("Your words to the agent")).to_have_value("Look at the refunds")
