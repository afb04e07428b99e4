"""Lists that stay on the host: results of tools and variables of which a kernel reads what its code touches."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dspy.primitives.code_interpreter import CodeExecutionError, FinalOutput
from jupyter_client.blocking.client import BlockingKernelClient

from kernel_bridge import Cell, CellHost, KernelInterpreter, KernelSession, Limits, PagedList
from kernel_bridge.with_dspy.attachment_marks import only_text_in


class Rows:
    """A source of rows, and the tool that returns a list of them."""

    def __init__(self, count: int = 1000) -> None:
        self.rows: list[Any] = [{"id": str(i), "text": f"text {i}"} for i in range(count)]
        self.asked: list[tuple[Any, Any, Any]] = []
        self.gone = False

    def read(self, key: Any, start: Any, stop: Any) -> Any:
        self.asked.append((key, start, stop))
        if self.gone:
            raise LookupError("run r1 is not known any more")
        return self.rows[start:stop]

    def result(self) -> dict[str, Any]:
        return {"score": 50.0, "nested": [self.paged()], "examples": self.paged()}

    def paged(self) -> PagedList:
        return PagedList("rows", {"run": "r1", "ids": None, "big": 2**70}, len(self.rows), self.read)

    def options(self) -> dict[str, Any]:
        return {"tools": {"result": self.result}, "page_sources": {"rows": self.read}}


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def own(kernel: KernelInterpreter, rows: Rows) -> Iterator[KernelInterpreter]:
    """The module's kernel with the tool and the source."""
    kernel.bind(tools={"result": rows.result})
    kernel.page_sources = {"rows": rows.read}
    yield kernel
    kernel.page_sources = {}


@pytest.mark.smoke
def test_a_result_is_there_at_once_and_its_list_reads_what_is_touched(own: KernelInterpreter, rows: Rows) -> None:
    assert own.execute("found = result()\nprint(found['score'], len(found['examples']))") == "50.0 1000"
    assert rows.asked == []
    assert own.execute("print(found['examples'][-1], found['nested'][0][3:4])") == (
        "{'id': '999', 'text': 'text 999'} [{'id': '3', 'text': 'text 3'}]"
    )
    key = {"run": "r1", "ids": None, "big": 2**70}
    assert rows.asked == [(key, 999, 1000), (key, 3, 4)]
    assert own.execute("[row['id'] for row in found['examples']] == [str(i) for i in range(1000)]") == "True"
    assert len(rows.asked) < 20
    assert own.execute("import json; len(json.loads(json.dumps(found['examples'])))") == "1000"
    assert own.execute("sorted(name for name in globals() if 'page' in name)") == "[]"


def test_a_variable_can_hold_one_and_is_not_sent_again(own: KernelInterpreter, rows: Rows) -> None:
    for _ in range(2):
        given = {"earlier": {"turns": rows.paged()}}
        assert own.execute("earlier['turns'][2]['id'], type(earlier['turns']).__mro__[1]", given) == ("('2', list)")
    assert [start for _, start, _ in rows.asked] == [2]


def test_what_the_code_gives_back_is_a_plain_list(own: KernelInterpreter, rows: Rows) -> None:
    got: list[Any] = []
    own.bind(tools={"result": rows.result, "take": lambda value: got.append(value)}, output_fields=[{"name": "rows"}])
    own.execute("take(result()['examples'])")
    assert got == [rows.rows]
    ended = own.execute("SUBMIT(rows=result()['examples'])")
    assert isinstance(ended, FinalOutput)
    assert ended.output == {"rows": rows.rows}


def test_after_a_submission_nothing_is_read_any_more(own: KernelInterpreter, rows: Rows) -> None:
    ended = own.execute(
        "kept = result()['examples']\n"
        "try:\n    SUBMIT('done')\nexcept BaseException:\n    pass\n"
        "try:\n    kept[5]\nexcept BaseException as error:\n    how = type(error).__name__"
    )
    assert isinstance(ended, FinalOutput)
    assert rows.asked == []
    assert own.execute("how, kept[5]['id']") == "('Submitted', '5')"


def test_what_the_source_raises_is_raised_where_the_list_is_touched(own: KernelInterpreter, rows: Rows) -> None:
    own.execute("kept = result()['examples']; kept[0]")
    rows.gone = True
    assert (
        own.execute("kept[0]['id']\ntry:\n    kept[1]\nexcept LookupError as error:\n    print(kept[0]['id'], error)")
        == "0 run r1 is not known any more"
    )
    own.page_sources = {}
    with pytest.raises(CodeExecutionError, match="NameError: there is no source 'rows' that the rest of this list"):
        own.execute("kept[1]")
    with pytest.raises(CodeExecutionError, match=r"the tools are: result$"):
        own.execute("host = result.__closure__[0].cell_contents; host('nothing', (), {})")


def test_without_the_source_a_list_arrives_whole(kernel: KernelInterpreter, rows: Rows) -> None:
    kernel.bind(tools={"result": rows.result})
    assert kernel.execute("found = result()['examples']; type(found) is list and len(found)") == "1000"
    assert only_text_in(rows.result())["examples"] == rows.rows  # for a sub-agent that runs on the host
    short = PagedList("rows", None, 5, lambda key, start, stop: [])
    kernel.bind(tools={"result": lambda: short})
    with pytest.raises(CodeExecutionError, match="the source 'rows' has 0 items; the list has 5"):
        kernel.execute("result()")


def test_an_item_larger_than_the_frame_limit_is_named(rows: Rows) -> None:
    rows.rows[20]["text"] = "x" * 200_000
    with KernelInterpreter(**rows.options(), limits=Limits(frame_bytes=100_000), confinement="off") as kernel:
        assert kernel.execute("found = result()['examples']; found[19]['id'], found[21]['id']") == "('19', '21')"
        with pytest.raises(
            CodeExecutionError, match=r"item \[20\] of the list .* at most 100000; the items before and"
        ):
            kernel.execute("for row in found: pass")
        assert kernel.execute("sum(len(row['text']) for row in found[:20] + found[21:])") == str(
            sum(len(row["text"]) for i, row in enumerate(rows.rows) if i != 20)
        )


def test_an_interrupt_breaks_off_a_read_and_the_list_goes_on(own: KernelInterpreter, rows: Rows) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(key: Any, start: int, stop: int) -> Any:
        reading.set()
        go_on.wait(30)
        return rows.read(key, start, stop)

    own.page_sources = {"rows": slow}
    own.execute("found = result()['examples']")
    with ThreadPoolExecutor(1) as pool:
        cell = pool.submit(own.execute, "found[3]")
        assert reading.wait(30)
        own.interrupt()
        with pytest.raises(CodeExecutionError, match="KeyboardInterrupt"):
            cell.result(30)
    go_on.set()
    assert own.execute("found") == "<list of 1,000 items, 0 of them read; an index, a slice or a loop reads more>"
    assert own.execute("found[3]['id'], found[-1]['id']") == "('3', '999')"


def test_threads_read_one_list_at_once(own: KernelInterpreter) -> None:
    own.execute("from concurrent.futures import ThreadPoolExecutor\nfound = result()['examples']")
    code = "with ThreadPoolExecutor(8) as pool: read = [*pool.map(lambda _: [*found], range(8))]\n"
    assert own.execute(code + "all(a is b for each in read for a, b in zip(each, found)), len(found)") == "(True, 1000)"


def test_a_console_reads_what_the_agent_has(own: KernelInterpreter) -> None:
    own.execute("found = result()['examples']")
    client = BlockingKernelClient(connection_file=str(own.connection_file))
    client.load_connection_file()
    client.hb_channel.time_to_dead = 60.0
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        shown: list[Any] = []
        client.execute_interactive("found[7]['id']", output_hook=shown.append, timeout=60, allow_stdin=False)
        assert [one["content"]["data"]["text/plain"] for one in shown if one["msg_type"] == "execute_result"] == ["'7'"]
    finally:
        client.stop_channels()
        client.context.term()
        del client
        gc.collect()
    assert own.execute("found") == "<list of 1,000 items, 1 of them read; an index, a slice or a loop reads more>"


def test_a_list_outlives_its_kernel_and_its_process(rows: Rows, tmp_path: Path) -> None:
    options = {**rows.options(), "checkpoint_file": tmp_path / "kept", "confinement": "off"}
    with KernelInterpreter(**options) as kernel:
        kernel.execute("found = result()['examples']; found[3]['mine'] = {'changed'}; read = len([*found])")
        with pytest.raises(CodeExecutionError, match="Restored from before this cell: found, read"):
            kernel.execute("import os; os._exit(1)")
        rows.asked.clear()
        assert kernel.execute("found[3]['mine'], found[4]['id'], len(found)") == "({'changed'}, '4', 1000)"
        assert kernel.execute("found[700]['id']") == "700"
        assert 0 < len(rows.asked) < 5
    with KernelInterpreter(**options) as kernel:
        assert kernel.execute("found[3]['mine'], found[900]['id']") == "({'changed'}, '900')"
    with KernelInterpreter(**{**options, "page_sources": {}}) as kernel:
        assert kernel.execute("found[3]['mine']") == "{'changed'}"
        with pytest.raises(CodeExecutionError, match="there is no source 'rows'"):
            kernel.execute("found[901]")


def test_a_session_without_an_interpreter_has_them_too(rows: Rows) -> None:
    with KernelSession(confinement="off") as session:
        host = CellHost({"result": rows.result}, page_sources={"rows": rows.read})
        assert session.run(Cell("result()['examples'][5]['id']"), host).text == "5\n"


@pytest.mark.parametrize("arguments", ["()", "('k', 1)", "('k', 1, 2, 3)", "('k', 'a', None)", "(None, -5, 10**30)"])
def test_what_a_kernel_asks_of_a_source_is_what_the_source_gets(
    own: KernelInterpreter, rows: Rows, arguments: str
) -> None:
    code = f"host = result.__closure__[0].cell_contents\nhost('page:rows', {arguments}, {{}})"
    if arguments == "(None, -5, 10**30)":
        own.execute(code)
        assert rows.asked == [(None, -5, 10**30)]
    else:
        with pytest.raises(CodeExecutionError, match="TypeError"):
            own.execute(code)


@pytest.mark.parametrize("wrong", [[1], {"rows": 1}, {1: print}, "rows"])
def test_page_sources_must_be_functions_by_names(wrong: Any) -> None:
    with pytest.raises(ValueError, match="page_sources must be a dict from names to functions"):
        KernelInterpreter(page_sources=wrong)
