"""Rows of long results: the agent's kernel reads what its code touches, whole, and nothing that it may not see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from stored_runs import result

from kernel_bridge import KernelInterpreter, PagedList
from rlmoptimizer.errors import SelectionError
from rlmoptimizer.outcome import example_rows
from rlmoptimizer.outcome.example_rows import PAGES_OF_RUNS, ExampleRows
from rlmoptimizer.show.notebook.replay import connect
from rlmoptimizer.store.run_store import RunStore

SUBMIT = 'SUBMIT(optimized_dspy_program=optimization_status()["current_prompts"])'
LOOK = """
run = run_data(baseline_runs['train']['run_id'])
print(len(run['examples']), run['score'], run['examples'])
last = run['examples'][-1]
print(len(last['inputs']['message']), last['inputs']['message'][-26:], [step['step_name'] for step in last['steps']])
print([row['example_id'] for row in run['examples'] if not row['passed']][:3])
print([row['example_id'] for row in run_data('r1', ids='3-5')['examples']])
print(type(run_data('r1', ids='3')['examples']).__name__, evaluate_program(ids='3-5')['examples'][2]['example_id'])
"""
SHOWN = """30 50.0 <list of 30 items, 0 of them read; an index, a slice or a loop reads more>
600034  29 at length about praise ['topic', 'reply']
['2', '4', '6']
['3', '4', '5']
list 5"""


def long_trainset(count: int = 30) -> list[Any]:
    return [row.copy(message=f"{'x' * 600_000} {row.message}") for row in toy.trainset(count)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path / "runs-0001.sqlite") as made:
        yield made


def run_of(store: RunStore, ids: list[str], *, repeats: int = 1, split: Any = "train", ends: bool = True) -> str:
    run_id = store.begin_run(split, {}, {"a": f"{repeats} {split} {len(ids)}"}, planned_ids=ids, repeats=repeats)
    for number, one in enumerate(ids):
        rows = [
            result(one, (number + round) % 2, rollout=round, inputs={"q": "x" * (number % 7) * 400})
            for round in range(repeats)
        ]
        store.append(run_id, *rows)
    if ends:
        store.finish_run(run_id, budget_left=0)
    return run_id


# through a whole compile


def test_an_agent_reads_what_it_touches_of_a_long_run_and_gets_it_whole(tmp_path: Path) -> None:
    found, _ = toy.compiled([LOOK, SUBMIT], trainset=long_trainset(), valset=None, run_storage_dir=tmp_path)
    assert found.agent_trajectory[0]["output"].strip() == SHOWN
    (path,) = tmp_path.glob("runs-*.sqlite")
    replay = connect(path, confinement="off", magic=False)
    try:
        assert replay.turn(1, LOOK).strip() == SHOWN
        rows = replay.tools["run_data"]("r1")["examples"]
        assert type(rows) is list
        assert len(rows) == 30
    finally:
        replay.close()


class Foreign:
    """An interpreter of somebody else's: it has not what a KernelInterpreter has beyond the protocol."""

    def __init__(self) -> None:
        self._own = KernelInterpreter(confinement="off")
        self.start, self.execute, self.shutdown = self._own.start, self._own.execute, self._own.shutdown
        self.execution_instructions = ""

    @property
    def tools(self) -> Any:
        return self._own.tools

    @tools.setter
    def tools(self, tools: Any) -> None:
        self._own.tools = tools

    @property
    def output_fields(self) -> Any:
        return self._own.output_fields

    @output_fields.setter
    def output_fields(self, fields: Any) -> None:
        self._own.output_fields = fields


def test_another_interpreter_gets_all_rows_at_once() -> None:
    code = "rows = run_data('r1')['examples']\nprint(type(rows).__name__, len(rows), len(rows[2]['inputs']['message']))"
    found, _ = toy.compiled([code, SUBMIT], trainset=long_trainset(6), valset=None, kernel=Foreign)
    assert found.agent_trajectory[0]["output"].strip() == "list 6 600031"


def test_rows_outlive_the_kernel_and_the_process(tmp_path: Path) -> None:
    options: dict[str, Any] = {"trainset": long_trainset(), "valset": None, "run_storage_dir": tmp_path}
    turns = [
        "rows = run_data('r1')['examples']; rows[0]['mine'] = 'changed'",
        "import os; os._exit(1)",
        "print(rows[0]['mine'], rows[20]['example_id'])",
        RuntimeError("the process ends here"),
    ]
    with pytest.raises(Exception, match="the process ends here"):
        toy.compiled(turns, **options)
    found, _ = toy.compiled(
        ["print(rows[0]['mine'], rows[25]['example_id'], len(rows))", SUBMIT], resume=True, **options
    )
    assert [turn["output"].strip() for turn in found.agent_trajectory][2:4] == ["changed 21", "changed 26 30"]


FORGED = [
    "None", "[]", "'r1'", "[None, None]", "['r1']", "['r1', None, None]", "{'r1': None}", "[['r1'], None]", "[1, None]",
    "['r2', None]", "['r2', ['1']]", "['r9', None]", "['r1 ', None]", "['x' * 10**6, None]", "['\\ud800', None]",
    "['r1', 'abc']", "['r1', [1]]", "['r1', [None]]", "['r1', [['1']]]", "['r1', ['1'] * 7]", "['r1', {}]", "['r1', 0]",
    "['r1', ['\\ud800']]", "['r1', ['nothing']]", "['r1', ['1; DROP TABLE runs']]", "['r1', []]",
]  # fmt: skip
PLACES = [
    "-1, 2", "0, 0", "2, 1", "0, 7", "0, 10**30", "-10**30, 1", "0.0, 1", "0, 1.0", "False, True", "'0', '1'",
    "None, None", "0, float('nan')", "[0], [1]", "6, 7",
]  # fmt: skip


def test_a_hostile_kernel_reads_nothing_but_rows_of_train() -> None:
    requests = [f"({key}, 0, 1)" for key in FORGED] + [f"(['r1', None], {places})" for places in PLACES]
    attack = (
        "update_prompt('topic', 'Name it.')\nevaluate_program('val')\n"
        "host = run_data.__closure__[0].cell_contents\n"
        f"for request in [{', '.join(requests)}]:\n"
        "    try:\n"
        f"        print('READ', request, host('page:{PAGES_OF_RUNS}', request, {{}}))\n"
        "    except BaseException as error:\n"
        "        print('refused', type(error).__name__, str(error)[:200])\n"
        f"print(len(host('page:{PAGES_OF_RUNS}', (['r1', None], 0, 6), {{}})))"
    )
    found, _ = toy.compiled([attack, SUBMIT], trainset=toy.trainset(6))
    output = found.agent_trajectory[0]["output"]
    assert "READ" not in output
    assert toy.SECRET not in output
    assert output.count("refused SelectionError") == len(requests), output
    assert output.strip().endswith("\n6")


# of a store


@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 3000), st.data())
def test_pages_hold_the_rows_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, count: int, repeats: int, page: int, data: st.DataObject
) -> None:
    names = [str(number) for number in range(1, count + 1)]
    ids = data.draw(st.none() | st.lists(st.sampled_from(names), min_size=1, unique=True))
    with (
        pytest.MonkeyPatch.context() as patch,
        RunStore.create(tmp_path_factory.mktemp("pages") / "runs.sqlite") as store,
    ):
        patch.setattr(example_rows, "_PAGE_BYTES", page)
        run = store.run(run_of(store, names, repeats=repeats))
        rows = ExampleRows(store)
        paged, whole = rows.paged(run, ids), rows.whole(run, ids)
        assert [row["example_id"] for row in whole] == [one for one in names if ids is None or one in ids]
        if not isinstance(paged, PagedList):
            assert paged == whole
            return
        assert paged.length == len(whole)
        assert paged.whole() == whole
        start = data.draw(st.integers(0, len(whole) - 1))
        stop = data.draw(st.integers(start + 1, len(whole)))
        found = rows.read_page(paged.key, start, stop)
        assert found == whole[start : start + len(found)]
        assert 0 < len(found) <= stop - start
        sizes = [len(row["inputs"]["q"]) for row in found]
        assert sum(sizes[:-1]) <= page


def test_the_rows_of_a_run_that_goes_on_later_keep_their_places(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_rows, "_PAGE_BYTES", 1)
    run_id = store.begin_run("train", {}, {"a": "p"}, planned_ids=["1", "2", "3", "4"])
    store.append(run_id, result("1"), result("4"))
    store.cut_runs()
    rows = ExampleRows(store)
    paged = rows.paged(store.run(run_id))
    assert isinstance(paged, PagedList)
    store.reopen_run(run_id)
    store.append(run_id, result("2"), result("3"))
    with pytest.raises(SelectionError, match="its rows can be read again when it has ended"):
        paged.whole()
    store.finish_run(run_id, budget_left=0)
    assert [row["example_id"] for row in paged.whole()] == ["1", "4"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_rows_of_val_and_test_are_never_read(store: RunStore, split: str) -> None:
    run_of(store, ["1", "2"], split=split)
    with pytest.raises(SelectionError, match=re.escape("these are no rows of a run on train")):
        ExampleRows(store).read_page(["r1", None], 0, 1)


def test_the_store_is_not_asked_for_examples_that_a_kernel_has_made_up(store: RunStore) -> None:
    run_id, rows = run_of(store, ["1", "2"]), ExampleRows(store)
    for made_up in ("3", "\x01" * 10**6):
        with pytest.raises(SelectionError, match="these are no examples of run r1"):
            rows.read_page([run_id, ["1", made_up]], 0, 1)
    assert len(rows.read_page([run_id, ["1"]], 0, 1)) == 1
