from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console
from story_events import EVIL, STORY, Clock, evaluation

from rlmoptimizer.events import EvaluationStarted, Event
from rlmoptimizer.show.terminal import display as display_module
from rlmoptimizer.show.terminal.display import Display


class Cell:
    """The outputs of a notebook cell."""

    def __init__(self) -> None:
        self.outputs: dict[str, Mapping[str, str]] = {}  # by name, in the order in which they came
        self.updates = 0

    def __call__(self, bundle: Mapping[str, str], name: str, *, update: bool) -> None:
        assert update == (name in self.outputs)
        self.outputs[name] = bundle
        self.updates += update


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    made = Cell()
    monkeypatch.setattr(display_module, "notebook_publisher", lambda: made)
    return made


def shown(events: list[Event], *, verbose: bool = False, step: float = 0.0) -> None:
    clock = Clock()
    display = Display(verbose=verbose, console=Console(file=io.StringIO(), force_jupyter=True), clock=clock)
    for event in events:
        display(event)
        clock.now += step
    display.close()


def test_all_evaluations_share_one_output_that_is_updated_now_and_then(cell: Cell) -> None:
    shown([*evaluation(1000, "r1"), *evaluation(1000, "r2")], step=0.01)
    (output,) = cell.outputs.values()
    assert 20 <= cell.updates <= 100  # of 2000 examples in 20 seconds
    assert output["text/html"].startswith('<div class="tex2jax_ignore mathjax_ignore"')
    for run in ("r1", "r2"):
        assert f"{run} train 1000/1000 score 50.0% (500 passed), 7 budget units left" in output["text/html"]
    assert "<progress" not in output["text/html"]


def test_while_an_evaluation_is_under_way_it_has_a_bar(cell: Cell) -> None:
    display = Display(console=Console(file=io.StringIO(), force_jupyter=True))
    display(EvaluationStarted("r1", "train", 5, baseline=False))
    (output,) = cell.outputs.values()
    assert '<progress max="1" value="0.000"' in output["text/html"]
    display.close()
    (output,) = cell.outputs.values()
    assert "<progress" not in output["text/html"]  # what was cut moves no more


def test_many_evaluations_are_folded(cell: Cell) -> None:
    shown([event for number in range(1, 31) for event in evaluation(1, f"r{number}")])
    (output,) = cell.outputs.values()
    folded, _, seen = output["text/html"].partition("</details>")
    assert "26 evaluations before" in folded
    assert seen.count("train") == 4


def test_with_verbose_head_turns_and_result_are_outputs_of_their_own_and_the_verdict_is_last(cell: Cell) -> None:
    shown(STORY, verbose=True)
    html = [output["text/html"] for output in cell.outputs.values()]
    assert len(html) == 14
    assert "Optimizing" in html[0]
    assert "gain on val" in html[-1]
    assert "".join(html).count("gain on val") == 1


def test_with_verbose_what_comes_after_a_block_stands_below_it(cell: Cell) -> None:
    shown(STORY, verbose=True)
    text = [output["text/plain"] for output in cell.outputs.values()]
    places = {part: [place for place, one in enumerate(text) if part in one] for part in ("r2", "Turn 1/9", "r3 val")}
    (baseline,), (turn,), (run,) = places.values()
    assert baseline < turn < run
    assert "r1" not in text[run]
    assert sum("<b>RLMDocstringOptimizer</b>" in output["text/html"] for output in cell.outputs.values()) == 0


def test_an_evaluation_that_goes_on_over_a_block_moves_below_it(cell: Cell) -> None:
    clock = Clock()
    display = Display(verbose=True, console=Console(file=io.StringIO(), force_jupyter=True), clock=clock)
    begun, *scored, ended = evaluation(4)
    for event in (begun, scored[0], STORY[0], *scored[1:]):
        display(event)
        clock.now += 1
    before, _, after = (output["text/html"] for output in cell.outputs.values())
    assert ("<progress" in before, "<progress" in after) == (False, True)
    display(ended)
    display.close()
    (line,) = (output["text/plain"] for output in cell.outputs.values() if "4/4" in output["text/plain"])
    assert line.startswith("r3 train 4/4 score 50.0%")


def test_nothing_foreign_is_markup_or_reads_the_other_way(cell: Cell) -> None:
    shown([*STORY, EvaluationStarted(f"r9 {EVIL}", "train", 1, baseline=False)], verbose=True)
    html = "".join(output["text/html"] for output in cell.outputs.values())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    for steering in ("<script", "\x1b", "\u202e", "\x00"):
        assert steering not in html


def test_what_is_logged_stands_in_the_same_output(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    handler = logging.StreamHandler(stream)
    logger = logging.Logger("rlmoptimizer.test")
    logger.parent = logging.getLogger()
    logger.parent.addHandler(handler)
    display = Display(console=Console(file=stream, force_jupyter=True))
    try:
        logger.warning("look <here>")
        display.close()
        logger.warning("later")
    finally:
        logging.getLogger().removeHandler(handler)
    (output,) = cell.outputs.values()
    assert "look &lt;here&gt;" in output["text/html"]
    assert stream.getvalue() == "later\n"


def test_where_nothing_can_be_shown_in_a_cell_there_are_plain_lines() -> None:
    stream = io.StringIO()
    display = Display(console=Console(file=stream, force_jupyter=True))  # but no IPython runs in this process
    for event in evaluation(3):
        display(event)
    display.close()
    assert stream.getvalue() == "r3 train 3/3 score 50.0% (1 passed), 7 budget units left\n"


def test_a_real_notebook_has_one_output_for_a_compile_and_with_verbose_one_for_each_turn(tmp_path: Path) -> None:
    rigs = Path(__file__).parents[3] / "rigs"
    begin = f"import sys, threading\nsys.path.insert(0, {str(rigs)!r})\nimport story_events"
    # Examples are scored in threads, which know nothing of the cell.
    run = """
display = story_events.Display(verbose={verbose})
def tell(): [display(event) for event in story_events.STORY]
thread = threading.Thread(target=tell)
thread.start(); thread.join(); display.close()
"""
    cells = [begin, run.format(verbose=False), run.format(verbose=True)]
    notebook: Any = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    quiet, verbose = notebook.cells[1].outputs, notebook.cells[2].outputs
    assert [output.output_type for output in quiet] == ["display_data"]
    assert "r3 val 2/2 score 100.0%" in quiet[0].data["text/html"]  # the last update
    assert "gain on val" in quiet[0].data["text/html"]
    assert [output.output_type for output in verbose] == ["display_data"] * 14
    assert "Turn 1/9" in verbose[3].data["text/plain"]
    nbformat.validate(notebook)


def test_no_notebook_is_needed_to_import_the_display() -> None:
    code = "import sys, rlmoptimizer.show.terminal.display; print({'IPython', 'dspy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
