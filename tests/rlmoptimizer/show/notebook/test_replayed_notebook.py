"""A stored run as a notebook: that it is valid and safe to look at, and that executing it replays the run."""

from __future__ import annotations

import copy
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
import toy
from child_process import fresh, output_of
from command import Command
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from nbclient import NotebookClient
from recorded_run import RESUMED, TURNS, record
from stored_optimization import write_small

from kernel_bridge.text import printable
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.events import KernelDied, NoteGiven
from rlmoptimizer.show.notebook.export import notebook_of, write_notebook
from rlmoptimizer.show.notebook.markdown_text import as_written
from rlmoptimizer.show.notebook.replay import NotInTheRecording, Replay, connect
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recorded")
    record(directory)
    return directory / "runs-0001.sqlite"


@pytest.fixture(scope="module")
def notebook(store_path: Path) -> Any:
    with StoreReader.open(store_path) as store:
        return notebook_of(store)


@pytest.fixture(scope="module")
def replay(store_path: Path) -> Iterator[Replay]:
    replay = connect(store_path, confinement="off")
    yield replay
    replay.close()


def shown(outputs: list[Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in output.items() if key != "execution_count"} for output in outputs]


def test_executing_the_notebook_gives_every_output_again(notebook: Any) -> None:
    executed = copy.deepcopy(notebook)
    own = [
        "import sys\nassert 'dspy' not in sys.modules\nprint(run_data('r1', '1')['run_id'], work_so_far[:9])",
        "%%turn\nprint(kept)",
        "compare_runs('r1', 'r99')",
    ]
    executed.cells += [nbformat.v4.new_code_cell(code) for code in own]
    executed.cells[-1].metadata["tags"] = ["raises-exception"]
    NotebookClient(executed, timeout=120).execute()
    cells = [(was, now) for was, now in zip(notebook.cells, executed.cells, strict=False) if was.cell_type == "code"]
    assert len(cells) == 1 + len(TURNS) - 1 + len(RESUMED)
    for was, now in cells[1:]:
        if "died" not in was.metadata.tags:
            assert shown(was.outputs) == shown(now.outputs), was.source
    assert "confined by" in cells[0][1].outputs[0]["data"]["text/plain"]
    assert "the kernel ended in this cell" in now_of(executed, "turn-6-code").outputs[0]["text"]
    run, looked, refused = (cell.outputs[0] for cell in executed.cells[-3:])
    assert run["text"] == "r1 This work\n"
    assert looked["text"] == "5\n"
    assert refused["ename"] == "NotInTheRecording"


def now_of(notebook: Any, name: str) -> Any:
    return next(cell for cell in notebook.cells if cell.id == name)


def test_the_notebook_has_reasoning_code_and_outputs_in_order(notebook: Any) -> None:
    nbformat.validate(notebook)
    first = notebook.cells[0]
    assert first.cell_type == "code"
    assert first.source.startswith("# CAUTION")
    assert "rlmoptimizer.show.notebook.replay" in first.source
    assert notebook.metadata.rlmoptimizer.store == "runs-0001.sqlite"
    turns = [cell for cell in notebook.cells if re.fullmatch(r"turn-\d+", cell.id)]
    assert [cell.source.splitlines()[2] for cell in turns][:2] == ["turn 1", "turn 2"]
    code = [cell for cell in notebook.cells if cell.id.endswith("-code")]
    assert [cell.source for cell in code] == [
        f"%%turn {number}\n{code}" for number, code in enumerate([*TURNS[:-1], *RESUMED], start=1)
    ]
    raised = now_of(notebook, "turn-3-code")
    assert raised.metadata.tags == ["raises-exception"]
    assert [output.output_type for output in raised.outputs] == ["stream", "error"]
    assert raised.outputs[1].ename == "PromptUpdateError"
    assert "died in this cell" in now_of(notebook, "turn-6").source
    assert now_of(notebook, "turn-6-code").metadata.tags == ["died"]
    assert now_of(notebook, "turn-10-code").outputs[0].text.startswith("FINAL: {'optimized_dspy_program'")
    assert "Result" in notebook.cells[-1].source


def test_nothing_of_val_is_in_the_notebook_or_among_the_calls(notebook: Any, store_path: Path) -> None:
    assert toy.SECRET not in nbformat.writes(notebook)
    with closing(sqlite3.connect(store_path)) as database:
        kept = database.execute("SELECT shown, answer, examples, error FROM calls").fetchall()
    assert kept
    assert toy.SECRET not in str(kept)


def test_a_call_that_the_agent_did_not_make_is_never_answered(replay: Replay) -> None:
    with pytest.raises(NotInTheRecording, match=r"in turn 1.*evaluate_program\(.*limit=3"):
        replay.turn(1, "evaluate_program(limit=4)")
    with pytest.raises(NotInTheRecording, match="turn 1"):  # it was asked, but in a later turn
        replay.turn(1, "llm_query('same')")
    with pytest.raises(NotInTheRecording, match="not so often"):
        replay.turn(2, "for _ in range(3): llm_query('same')")
    with pytest.raises(NotInTheRecording):  # whatever the code makes of it
        replay.turn(1, "try:\n    evaluate_program(limit=4)\nexcept Exception:\n    pass")
    assert replay.turn(1, "evaluate_program(limit=3)['score']") == "66.67"
    assert replay.turn(1, "evaluate_program('train', 3)['score']") == "66.67"  # each run of a turn begins it anew


def test_tools_for_cells_of_ones_own_give_the_newest_answer(replay: Replay) -> None:
    assert replay.tools["llm_query"]("same") == "heard: same"
    assert replay.tools["run_data"]("r1", "1")["run_id"] == "r1"
    assert replay.variables["previous_trajectory"][0]["code"] == TURNS[0]
    with pytest.raises(NotInTheRecording):
        replay.tools["run_data"]("r2")
    with pytest.raises(InvalidSetup, match="no turn 99"):
        replay.turn(99, "1")


def test_a_machine_that_cannot_confine_runs_nothing_unasked(store_path: Path) -> None:
    with pytest.raises(InvalidSetup, match=r'not run here.*confinement="auto"'):
        connect(store_path, confinement={"cpu_capped"})


def test_notes_of_people_deaths_and_an_unfinished_turn_are_marked(tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False) as store:
        store.record_event(NoteGiven.__name__, {"before_turn": 1, "text": "Look at <b>billing</b>"})
        store.record_event("CellEnded", {"turn": 1, "ended": "died"})
        store.record_event(KernelDied.__name__, {"turn": 1, "reason": "out of [memory](x)"})
        store.begin_iteration("while True: pass")
        cells = {cell.id: cell for cell in notebook_of(store).cells}
    assert "Note of a person" in cells["note-1-1"].source
    assert "&#60;b&#62;billing" in cells["note-1-1"].source
    assert "out of &#91;memory&#93;" in cells["turn-1"].source
    assert "The process ended in this cell" in cells["turn-2"].source
    assert cells["turn-2-code"].metadata.tags == ["cut"]
    assert "had not ended" in cells["end"].source


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)> ![x](http://evil.test/a.png) [x](javascript:alert(1)) "
    "<http://evil.test> https://evil.test $\\href{javascript:alert(1)}{x}$ \\(x\\) &lt;b&gt;\n# head\n- item\n1. one\n"
    "> quote\n```\ncode\n```\n---\n[a]: http://evil.test 'x'\n\x1b[31mred\u202e | a | b |"
)


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store:
        store.record_iteration(HOSTILE, f"print('\u202e')\n# {HOSTILE}\ud800", HOSTILE)
        write_notebook(store, tmp_path / "run.ipynb")
    notebook = nbformat.read(tmp_path / "run.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert tags_of(cell.source) <= {"p", "br", "h1", "h2", "strong", "span"}
        assert not re.search("[\x00-\x08\x1b\u202e\ud800]", cell.source)
        assert all(set(output) <= {"output_type", "name", "text"} for output in cell.get("outputs", []))


class Rendered(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        assert attrs == []

    def handle_data(self, data: str) -> None:
        self.text += data


def tags_of(markdown: str) -> set[str]:
    return Rendered(RENDERER.render(markdown)).tags


RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
MARKS = st.text(st.sampled_from("ab1 <>&\\`*_[](){}#+-.!|~$=:;/@\t\n\"'"), max_size=60)


@given(MARKS | st.text(max_size=40))
def test_any_text_reads_as_it_was_written(text: str) -> None:
    read = Rendered(RENDERER.render(as_written(text)))
    assert read.tags <= {"p", "br", "span"}
    assert not re.search(r"[$\\][^<]", RENDERER.render(as_written(text)))  # a formula would begin there
    lines = [line.split() for line in printable(text, None).split("\n")]
    found = [line.replace("\xa0", " ").split() for line in read.text.split("\n")]
    assert [line for line in found if line] == [line for line in lines if line]


def test_the_command_writes_the_notebook(command: Command, tmp_path: Path) -> None:
    write_small(tmp_path).close()
    made = command("notebook", tmp_path, "-o", tmp_path / "run.ipynb")
    assert made.lines == [str(tmp_path / "run.ipynb")]
    nbformat.validate(nbformat.read(tmp_path / "run.ipynb", as_version=4))
    assert "there is nothing at" in command("notebook", tmp_path / "nowhere", "-o", tmp_path / "x.ipynb").refused(1)
    assert command("notebook", tmp_path).code == 2
    store = tmp_path / "runs-0001.sqlite"
    assert "is the run store itself" in command("notebook", tmp_path, "-o", store).refused(1)
    assert (tmp_path / "run.ipynb").stat().st_mode & 0o077 == 0


def test_the_replay_imports_no_dspy() -> None:
    code = "import sys, rlmoptimizer.show.notebook.replay, rlmoptimizer.show.notebook.export"
    assert output_of(fresh(f"{code}; print('dspy' in sys.modules)")) == "False\n"
