"""A whole compile of thirty turns, watched in a browser: paused, noted and branched from the page as it goes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import toy
from browser import OpenPage
from live_pages import serving
from offline import Asked, ScriptedRootLM

from rlmoptimizer.store.directory import store_path
from rlmoptimizer.store.store_reader import StoreReader

pytestmark = pytest.mark.usefixtures("plain_repl")
SECONDS = 120
NOTE = "The customers are dentists."
EVALUATE = "print(evaluate_program(split='train', ids=['1'])['score'])"
FIX = f"update_prompt('topic', {toy.FIX!r}); {EVALUATE}"
SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
FIRST, SECOND = 12, 17  # turns of the optimization, and of its branch without the submission


@dataclass
class Gate:
    """A turn of the agent that waits, in its root LM, for the test."""

    code: str = "print('on')"
    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def __call__(self, question: Asked) -> str:
        self.reached.set()
        assert self.opened.wait(SECONDS)
        return self.code


@contextmanager
def compiling(root: ScriptedRootLM, directory: Path) -> Iterator[list[Any]]:
    """A compile in a thread of its own; at the end of the block it has ended, and the list has its result."""
    results: list[Any] = []
    optimizer = toy.optimizer(root, run_storage_dir=directory, rlm_max_iterations=40)
    thread = threading.Thread(target=lambda: results.append(optimizer.compile(toy.Triage(), **toy.arguments())))
    thread.start()
    try:
        yield results
    finally:
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_a_compile_is_watched_paused_noted_and_branched_from_the_page(
    tmp_path: Path, open_page: OpenPage, wait_until: Callable[..., None]
) -> None:
    from playwright.sync_api import expect

    pausing, branching, last = Gate(), Gate(), Gate()
    first = [FIX, *["print('thinking')"] * 4, pausing, *["print('more')"] * (FIRST - 7), branching]
    second = [EVALUATE, *["print('again')"] * (SECOND - 2), last]
    root = ScriptedRootLM([*first, *second, SUBMIT])
    with compiling(root, tmp_path) as results:
        assert pausing.reached.wait(SECONDS)
        with serving(store_path(tmp_path, 1)) as server:
            page = open_page(server.address)
            expect(page.locator("#views")).to_contain_text(re.compile(r"Turns [56]"))

            page.locator("#live-pause").click()
            expect(page.locator(".live-said")).to_contain_text("The agent will wait before its next turn")
            pausing.opened.set()
            expect(page.locator("#state")).to_have_text("paused")
            page.locator("#live-note").click()
            page.get_by_label("Your words to the agent").fill(NOTE)
            page.get_by_role("button", name="Send").click()
            expect(page.locator(".live-said")).to_contain_text("The agent will get the note when it goes on")
            assert len(root.seen) == 6
            page.locator("#live-pause").click()

            assert branching.reached.wait(SECONDS)
            assert "notes_from_person" not in root.seen[5].text
            assert json.loads(root.seen[6].inputs["notes_from_person"]) == [{"before_turn": 7, "text": NOTE}]
            expect(page.locator("#state")).to_have_text("running")
            page.locator("#live-branch").click()
            page.get_by_label("Begin with the prompts of").select_option("r3")
            page.get_by_role("button", name="Branch", exact=True).click()
            expect(page.locator(".live-said")).to_contain_text("optimization 2 begins with these prompts")
            branching.opened.set()

            assert last.reached.wait(SECONDS)
            expect(page.locator("#state")).to_have_text("finished")
            page.get_by_role("link", name="Follow it").click()
            expect(page).to_have_url(re.compile(r"/2/$"))
            expect(page.locator("#state")).to_have_text("running")
            expect(page.locator("#views")).to_contain_text(re.compile(rf"Turns {SECOND - 1}|Turns {SECOND}"))
            last.opened.set()
            expect(page.locator("#state")).to_have_text("finished")
    (program,) = results
    assert program.topic.signature.instructions == toy.FIX
    with StoreReader.open(store_path(tmp_path, 1)) as parent, StoreReader.open(store_path(tmp_path, 2)) as branch:
        assert len(parent.iterations()) + len(branch.iterations()) == FIRST + SECOND + 1 == 30
        assert (branch.setup() or {})["branch"]["run_id"] == "r3"
        assert [record.data["text"] for record in parent.events("NoteGiven")] == [NOTE]
