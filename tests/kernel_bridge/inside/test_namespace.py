"""The checkpoint: what a kernel finds of its predecessor's names, and that it says so when they are older."""

from __future__ import annotations

import pytest
from dspy.primitives.code_interpreter import CodeExecutionError

from kernel_bridge import KernelInterpreter, Limits

DIE = "import os; os._exit(1)"
SLOW = """
import time
class Slow:
    def __reduce__(self):
        time.sleep(60)
slow = Slow()
"""


def obituary(kernel: KernelInterpreter) -> str:
    with pytest.raises(CodeExecutionError) as died:
        kernel.execute(DIE)
    return str(died.value)


def test_a_name_that_takes_too_long_to_pickle_costs_only_itself() -> None:
    with KernelInterpreter(confinement="off", limits=Limits(checkpoint_seconds=2)) as kernel:
        kernel.execute("x = 1")
        kernel.execute(f"{SLOW}x = 2; y = [3]")
        said = obituary(kernel)
        assert "slow (pickling it took longer" in said
        assert kernel.execute("print(x, y)") == "2 [3]"


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="a directory in the way, as POSIX has it")
@pytest.mark.parametrize("before", ["pass", "x = 1"])
def test_a_checkpoint_that_was_never_finished_is_told_and_the_one_before_it_restored(before: str) -> None:
    # A directory in the place of the file that is written next, where writing fails as on a full disk.
    in_the_way = """
import os
from kernel_bridge.inside.checkpoint_slots import newest, slot_paths
path = get_ipython().kernel.checkpoint._path
for slot in slot_paths(path):
    if slot != newest(path).path:
        os.unlink(slot)
        os.makedirs(os.path.join(slot, "in the way"))
del path, slot
x = 2
"""
    with KernelInterpreter(confinement="off") as kernel:
        kernel.execute(before)
        kernel.execute(in_the_way)
        kernel.execute("x = 3")
        said = obituary(kernel)
        assert "(what changed since an earlier cell) (the checkpoint after the last cell was never finished)" in said
        assert kernel.execute("print(globals().get('x'))") == ("1" if before == "x = 1" else "None")


def test_an_unchanged_namespace_keeps_its_checkpoint() -> None:
    with KernelInterpreter(confinement="off") as kernel:
        kernel.execute("x = 1")
        for _ in range(3):
            kernel.execute("pass")
        said = obituary(kernel)
        assert "Restored from before this cell: x." in said
        assert "earlier cell" not in said


def test_what_changes_after_cells_that_changed_nothing_is_kept() -> None:
    with KernelInterpreter(confinement="off") as kernel:
        kernel.execute("x = 1; rows = [{'a': [1]}]; same = rows[0]['a']\ndef f(): return 1")
        for change in ("same.append(2)", "f.__defaults__ = ()", "f.mark = same", "rows.append(rows)", "del x"):
            kernel.execute("None")
            kernel.execute(change)
        kernel.execute("None")
        obituary(kernel)
        assert kernel.execute("same is rows[0]['a'] is f.mark, same, rows[1] is rows, f.__defaults__") == (
            "(True, [1, 2], True, ())"
        )
        assert kernel.execute("'x' in globals()") == "False"


def test_a_change_deep_in_a_large_value_is_kept() -> None:
    with KernelInterpreter(confinement="off") as kernel:
        kernel.execute("rows = [{'id': n, 'more': [str(n)]} for n in range(100_000)]; early = 1; row = rows[70_000]")
        kernel.execute("None")
        kernel.execute("rows[70_000]['more'].append('new'); early = 2")
        obituary(kernel)
        assert kernel.execute("print(rows[70_000] is row, row, len(rows), rows[-1], early)") == (
            "True {'id': 70000, 'more': ['70000', 'new']} 100000 {'id': 99999, 'more': ['99999']} 2"
        )


def test_a_cell_that_comes_while_the_reply_is_still_being_sent_finds_the_checkpoint_made() -> None:
    # Under load a kernel may be stopped right here; the host has its reply and sends the next cell meanwhile.
    slow_reply = """
import time
stream = get_ipython().kernel.shell_stream
handle_send = stream._handle_send
def send_and_be_stopped():
    handle_send()
    time.sleep(0.3)
stream._handle_send = send_and_be_stopped
kept = 1
"""
    with KernelInterpreter(confinement="off") as kernel:
        kernel.execute(slow_reply)
        assert "Restored from before this cell: kept" in obituary(kernel)
