"""A kernel's namespace outlives its host in a file of the caller's, and a kernel of another process has it again."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child_process import forked
from dspy.primitives.code_interpreter import CodeExecutionError

from kernel_bridge import KernelInterpreter, Limits
from kernel_bridge.files import checkpoint_file
from kernel_bridge.files.checkpoint_file import CheckpointKeeper, fetch_checkpoint
from kernel_bridge.inside.checkpoint_slots import SlotWriter, slot_paths

CONFINEMENTS = ["auto", "off"]

HOST = """
import sys, threading
from kernel_bridge import KernelInterpreter
kernel = KernelInterpreter(checkpoint_file=sys.argv[1], confinement=sys.argv[2])
for number, code in enumerate(sys.argv[3:], start=1):
    kernel.checkpoint_label = f"cell {number}"
    kernel.execute(code)
print("thinking", flush=True)
threading.Event().wait()
"""

STATE = """
import json, collections
notes = {"tries": [1, 2, 3]}
class Idea:
    def __init__(self, text): self.text = text
    def shout(self): return self.text.upper() + str(len(notes["tries"]))
def twice(x):
    return [x, x]
ideas = twice(Idea("one word"))
"""


def label_of(file: Path) -> str | None:
    try:
        return file.read_bytes()[68:132].rstrip(b"\0").decode()
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("confinement", CONFINEMENTS)
def test_a_host_that_is_killed_while_it_thinks_leaves_its_kernels_namespace_to_the_next(
    confinement: str, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    file = tmp_path / "kept"
    with forked(HOST, file, confinement, "x = 1", STATE) as host:
        host.wait_for("thinking")
        wait_until(lambda: label_of(file) == "cell 2", "the namespace after the second cell is kept")
        host.killed()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with KernelInterpreter(checkpoint_file=file, confinement=confinement) as kernel:
        restored = kernel.restored
        assert restored is not None
        assert (restored.label, restored.problem, dict(restored.lost)) == ("cell 2", None, {})
        assert set(restored.names) >= {"x", "notes", "Idea", "twice", "ideas", "json", "collections"}
        assert kernel.execute("print(x, ideas[0] is ideas[1], ideas[0].shout(), json.dumps(notes))") == (
            '1 True ONE WORD3 {"tries": [1, 2, 3]}'
        )


@pytest.mark.smoke
def test_an_interpreter_that_is_shut_down_leaves_its_last_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel_bridge.session._KEEP_SECONDS", 60.0)  # for a slow machine
    file = tmp_path / "kept"
    with KernelInterpreter(checkpoint_file=file) as kernel:
        assert kernel.restored is None
        for number in (1, 2):
            kernel.checkpoint_label = f"cell {number}"
            kernel.execute(f"x = {number}")
    assert label_of(file) == "cell 2"
    with KernelInterpreter(checkpoint_file=file) as kernel:
        assert kernel.execute("x") == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_shutdown_waits_for_a_checkpoint_that_is_being_made_but_for_none_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = """
import time
class Slow:
    def __init__(self, seconds): self.seconds = seconds
    def __reduce__(self):
        time.sleep(self.seconds)
        return int, (7,)
"""
    file = tmp_path / "kept"
    with monkeypatch.context() as patch, KernelInterpreter(checkpoint_file=file) as kernel:
        patch.setattr("kernel_bridge.session._KEEP_SECONDS", 60.0)  # for a slow machine
        kernel.checkpoint_label = "quick"
        kernel.execute(f"{slow}\nx = Slow(0.3)")
    with KernelInterpreter(checkpoint_file=file, limits=Limits(checkpoint_seconds=600)) as kernel:
        kernel.checkpoint_label = "quick"
        assert kernel.execute("x") == "7"
        kernel.checkpoint_label = "endless"
        kernel.execute(f"{slow}\nx = Slow(500)")
    assert label_of(file) == "quick"


def test_what_did_not_change_is_only_given_its_new_label(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    file = tmp_path / "kept"
    with KernelInterpreter(checkpoint_file=file) as kernel:
        kernel.checkpoint_label = "first"
        kernel.execute("x = list(range(1000))")
        wait_until(lambda: label_of(file) == "first", "it is kept")
        before = file.stat().st_ino
        kernel.checkpoint_label = "second"
        kernel.execute("print(x[0])")
        wait_until(lambda: label_of(file) == "second", "it is kept as the namespace of the second cell")
        assert file.stat().st_ino == before
    with KernelInterpreter(checkpoint_file=file) as kernel:
        assert kernel.execute("len(x)") == "1000"


def test_what_could_not_be_kept_is_named(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    file = tmp_path / "kept"
    with KernelInterpreter(checkpoint_file=file) as kernel:
        kernel.checkpoint_label = "1"
        kernel.execute("handle = open('notes.txt', 'w'); kept = 5")
        wait_until(lambda: label_of(file) == "1", "it is kept")
    with KernelInterpreter(checkpoint_file=file) as kernel:
        restored = kernel.restored
        assert restored is not None
        assert "kept" in restored.names
        assert set(restored.lost) == {"handle"}


def test_functions_of_an_earlier_process_keep_their_lines_in_tracebacks(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    file = tmp_path / "kept"
    with KernelInterpreter(checkpoint_file=file) as kernel:
        kernel.checkpoint_label = "1"
        kernel.execute("def fail():\n    raise ValueError('from before')")
        wait_until(lambda: label_of(file) == "1", "it is kept")
    with (
        KernelInterpreter(checkpoint_file=file) as kernel,
        pytest.raises(CodeExecutionError, match=r"raise ValueError\('from before'\)"),
    ):
        kernel.execute("# other lines\nfail()")


def kept(file: Path, wait_until: Callable[..., None], code: str = "x = 1", **options: Any) -> bytes:
    with KernelInterpreter(checkpoint_file=file, **options) as kernel:
        kernel.checkpoint_label = "kept"
        kernel.execute(code)
        wait_until(lambda: label_of(file) == "kept", "it is kept")
    return file.read_bytes()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[..., None]) -> bytes:
    """A file as a kernel leaves it that has `x`."""
    return kept(tmp_path_factory.mktemp("good") / "kept", wait_until)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[:-1], "it is damaged"),
        (lambda data: data + b"x", "it cannot be copied: it is longer than"),
        (lambda data: data[:-3] + b"xyz", "it is damaged"),
        (lambda data: b"", "it is no checkpoint of a kernel"),
        (lambda data: b"SQLite format 3\0" + data[16:], "it is no checkpoint of a kernel"),
        (lambda data: data[:16] + (9).to_bytes(4, "big") + data[20:], "its format has version 9, this is version 2"),
    ],
)
def test_a_file_that_is_torn_foreign_or_too_new_is_ignored_and_told(
    spoil: Callable[[bytes], bytes], said: str, tmp_path: Path, good: bytes
) -> None:
    file = tmp_path / "kept"
    file.write_bytes(spoil(good))
    with KernelInterpreter(checkpoint_file=file) as kernel:
        restored = kernel.restored
        assert restored is not None
        assert restored.problem is not None
        assert restored.problem.startswith(said)
        assert restored.names == ()
        assert kernel.execute("'x' in globals()") == "False"


def test_a_file_larger_than_a_checkpoint_may_be_is_neither_made_nor_taken(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    file = tmp_path / "kept"
    kept(file, wait_until, "x = bytes(range(256)) * 2**17")
    found = fetch_checkpoint(file, tmp_path / "copy", 1000)
    assert found is not None
    assert found.problem is not None
    assert "checkpoint_bytes allows 1,000" in found.problem
    small = tmp_path / "small"
    kept(small, wait_until, "x = bytes(range(256)) * 2**17; y = 1", limits=Limits(checkpoint_bytes=2**20))
    assert small.stat().st_size < 2**20
    with KernelInterpreter(checkpoint_file=small) as kernel:
        assert kernel.execute("y, 'x' in globals()") == "(1, False)"


def test_a_checkpoint_whose_restoring_kills_the_kernel_costs_only_the_names(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    file = tmp_path / "kept"
    kept(file, wait_until, "import os\nclass Bomb:\n    def __reduce__(self): return os._exit, (3,)\nbomb = Bomb()")
    with KernelInterpreter(checkpoint_file=file) as kernel:
        assert kernel.restored is not None
        assert "restoring them failed" in kernel.restored.lost["all names"]
        assert kernel.execute("1 + 1") == "2"


@pytest.mark.parametrize(
    "trick",
    [
        "os.symlink('{secret}', place + '/checkpoint.0')",
        "os.link('{secret}', place + '/checkpoint.0')",
        "os.mkfifo(place + '/checkpoint.0')",
        "os.mkdir(place + '/checkpoint.0')",
    ],
)
def test_nothing_but_a_plain_file_is_taken_from_the_kernel(trick: str, tmp_path: Path) -> None:
    secret, file, place = tmp_path / "secret", tmp_path / "kept", tmp_path / "keep"
    secret.write_text("the host's own")
    place.mkdir()
    (place / "checkpoint.1").touch()
    exec(trick.format(secret=secret), {"os": os, "place": str(place)})
    keeper = CheckpointKeeper(file, place / "checkpoint", 2**20)
    keeper.expect(1, "1", lambda cell: True)
    keeper.close()
    assert not file.exists()
    assert secret.read_text() == "the host's own"


def test_a_successor_whose_turns_begin_anew_is_not_taken_for_its_predecessor(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    file, source = tmp_path / "kept", tmp_path / "checkpoint"
    slots = [Path(slot) for slot in slot_paths(str(source))]
    keeper = CheckpointKeeper(file, source, 2**20)
    for cell, held in enumerate((b"x = 1", b"x = 2"), start=1):
        for slot in slots:  # the host has emptied what the predecessor left, such as too large a checkpoint
            slot.write_bytes(b"")
        with SlotWriter(str(source)) as writer:
            writer.write(held)
            writer.finish(b"{}")
        keeper.follow(source)
        keeper.expect(cell, str(cell), lambda cell: True)
        wait_until(lambda held=held: file.exists() and held in file.read_bytes(), "it is kept")
    keeper.close()


def test_the_files_place_may_be_a_link_but_is_replaced_not_followed(tmp_path: Path, wait_until: Any) -> None:
    other, file = tmp_path / "other", tmp_path / "kept"
    other.write_text("something else")
    file.symlink_to(other)
    with KernelInterpreter(checkpoint_file=file) as kernel:
        assert kernel.restored is not None
        assert kernel.restored.problem is not None
        kernel.checkpoint_label = "1"
        kernel.execute("x = 1")
        wait_until(lambda: not file.is_symlink(), "it is kept")
    assert other.read_text() == "something else"


def test_a_disk_that_cannot_hold_it_costs_a_warning_and_no_cell(tmp_path: Path, caplog: Any, wait_until: Any) -> None:
    missing = tmp_path / "nowhere" / "kept"
    with KernelInterpreter(checkpoint_file=missing) as kernel:
        kernel.execute("x = 1")
        wait_until(lambda: "could not be kept" in caplog.text, "it is told")
        assert kernel.execute("x") == "1"


def test_a_death_is_told_to_the_owner_whose_words_the_agent_reads() -> None:
    told: list[int] = []

    def on_death() -> str:
        told.append(1)
        return "The ledger is whole."

    with KernelInterpreter(on_death=on_death) as kernel:
        kernel.execute("x = 1")
        with pytest.raises(CodeExecutionError, match=r"The cell was not run again\. The ledger is whole\.$"):
            kernel.execute("import os; os._exit(3)")
        kernel.on_death = None
        with pytest.raises(CodeExecutionError, match=r"What its tool calls did on the host stands\.$") as died:
            kernel.execute("import os; os._exit(3)")
        assert "budget" not in str(died.value)
    assert told == [1]


def test_an_owner_that_fails_at_a_death_keeps_no_successor_from_starting(caplog: Any) -> None:
    def on_death() -> str:
        raise RuntimeError("the owner is confused")

    with KernelInterpreter(on_death=on_death) as kernel:
        with pytest.raises(CodeExecutionError, match="A new kernel was started"):
            kernel.execute("import os; os._exit(3)")
        assert kernel.execute("1 + 1") == "2"
    assert "the owner is confused" in caplog.text


@pytest.mark.parametrize(
    "options", [{"checkpoint_file": 3}, {"checkpoint_file": "x", "checkpoint": False}, {"on_death": 3}]
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        KernelInterpreter(**options)


def test_a_copy_to_a_disk_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kernel_bridge.files.checkpoint_file._CLOSE_SECONDS", 0.01)
    keeper = CheckpointKeeper(tmp_path / "kept", tmp_path / "source", 1000)
    with keeper._copying:  # as a copy would that does not come to its end
        keeper.expect(1, "label", lambda cell: True)
        keeper.wait(60)
        keeper.close()
    assert "not waited for" in caplog.text
    assert checkpoint_file._looks.cancel(keeper, 60)
