"""Kernels that are kept warm: taken by one session each, as empty as cold ones, and gone with their owner."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from child_process import fresh, output_of
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError

from kernel_bridge import Confinement, KernelInterpreter, KernelInterpreterFactory, Limits, live_sessions
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.inside.checkpoint_slots import Slot
from kernel_bridge.sub_agents.quota import Quota

Factory = KernelInterpreterFactory[KernelInterpreter]
DIE = "import os; os._exit(3)"
SECONDS = 120.0


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("w")


@contextmanager
def warm(root: Path, prewarm: int = 1, **options: Any) -> Iterator[Factory]:
    """A factory all of whose kernels are ready, and nothing of which is left afterwards."""
    options = {"confinement": "off", "runtime_dir": root, **options}
    with KernelInterpreter.factory(prewarm=prewarm, **options) as factory:
        assert factory.wait_warm(SECONDS)
        yield factory
    assert list(root.iterdir()) == []


def pids(root: Path) -> set[int]:
    """The guardians of the kernels of this process that live below the directory."""
    return {child.pid for child in psutil.Process().children() if str(root) in _place(child)}


def _place(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:  # it is just ending
        return ""


def restored_after_death(interpreter: KernelInterpreter) -> str:
    with pytest.raises(CodeExecutionError) as died:
        interpreter.execute(DIE)
    return str(died.value)


@pytest.mark.smoke
@pytest.mark.parametrize("confinement", ["auto", "off"])
def test_an_interpreter_takes_a_warm_kernel_and_after_a_death_another(root: Path, confinement: str) -> None:
    with warm(root, confinement=confinement) as factory:
        assert live_sessions(root) == []
        (first,) = pids(root)
        with factory() as interpreter:
            assert first in pids(root)
            interpreter.tools["add"] = lambda a, b: a + b
            assert interpreter.execute("kept = [41]\ndef more(): return add(kept[0], 1)\nmore()") == "42"
            assert interpreter.report is not None
            (listed,) = live_sessions(root)
            assert listed.connection_file == interpreter.connection_file
            assert factory.wait_warm(SECONDS)
            (second,) = pids(root) - {first}
            assert len(live_sessions(root)) == 1
            told = restored_after_death(interpreter)
            assert "it exited with status 3" in told
            assert "Restored from before this cell: kept, more" in told
            assert second in pids(root)
            assert first not in pids(root)
            assert interpreter.execute("print(more())\nSUBMIT(kept)").output == {"output": [41]}
            (now,) = live_sessions(root)
            assert now.connection_file == interpreter.connection_file
            assert now.connection_file.parent != listed.connection_file.parent
            assert not listed.connection_file.parent.exists()
            assert now.started == listed.started


def test_nothing_of_an_earlier_session_is_in_a_taken_kernel(root: Path) -> None:
    look = (
        "import os, sys, gc\nprint(sorted(n for n in globals() if not n.startswith('_')), os.listdir('.'), "
        "sorted(os.environ), [type(o).__name__ for o in gc.get_objects() if 'Secret' in type(o).__name__])"
    )
    with KernelInterpreter(confinement="off", runtime_dir=root) as cold:
        as_cold = cold.execute(look)
    with warm(root, checkpoint=True) as factory:
        with factory() as first:
            first.tools["told"] = lambda: "secret"
            first.execute("class Secret: pass\ns = Secret(); open('secret', 'w').write(told())", {"given": "secret"})
            restored_after_death(first)
        assert factory.wait_warm(SECONDS)
        with factory() as second:
            assert second.execute(look) == as_cold
            assert second.restored is None
            with pytest.raises(CodeExecutionError, match="NameError"):
                second.execute("told()")


def test_no_two_interpreters_get_the_same_kernel(root: Path) -> None:
    with warm(root, 2) as factory:
        made = [factory() for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda each: each.execute("import os; mine = os.getpid(); mine"), made))
        assert len(set(found)) == 4
        for interpreter in made:
            interpreter.shutdown()


def test_whoever_comes_while_one_starts_gets_that_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_bridge.live.warm_kernels._HEAD_START_SECONDS", 600.0)  # no other one is started
    with KernelInterpreter.factory(prewarm=1, confinement="off", runtime_dir=root) as factory, factory() as interpreter:
        assert interpreter.execute("6 * 7") == "42"
        assert len(pids(root)) == 1


def test_while_they_rest_one_begins_only_at_leisure(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_bridge.live.warm_kernels._HEAD_START_SECONDS", 0.0)
    with warm(root) as factory:
        assert factory.warm is not None
        factory.warm.rest()
        with factory() as interpreter, factory.warm.at_leisure(SECONDS):
            interpreter.execute("import time; time.sleep(0.3)")  # one that is to begin has begun after a hundredth
            assert len(pids(root)) == 1
            with factory() as second:  # none is on its way, so it does not wait
                assert second.execute("6 * 7") == "42"
            with factory.warm.at_leisure(0.0):
                assert factory.wait_warm(SECONDS)
            restored_after_death(interpreter)
            assert len(pids(root)) == 1


def test_one_that_was_killed_is_replaced_and_never_taken(root: Path, wait_until: Callable[..., None]) -> None:
    with warm(root) as factory:
        (first,) = pids(root)
        for process in psutil.Process(first).children(recursive=True):
            process.kill()
        wait_until(lambda: first not in pids(root), "it is noticed")
        assert factory.wait_warm(SECONDS)
        with factory() as interpreter:
            assert interpreter.execute("6 * 7") == "42"


def test_the_checkpoint_file_is_kept_on_from_the_new_place(root: Path, tmp_path: Path, wait_until: Any) -> None:
    file = tmp_path / "kept"
    with warm(root, checkpoint_file=file) as factory:
        with factory() as interpreter:
            interpreter.checkpoint_label = "one"
            interpreter.execute("x = 1")
            wait_until(file.exists, "it is kept")
            assert factory.wait_warm(SECONDS)
            restored_after_death(interpreter)
            interpreter.checkpoint_label = "two"
            interpreter.execute("y = x + 1")
            assert factory.wait_warm(SECONDS)
        with factory() as another:
            assert another.restored is not None
            assert (another.restored.label, another.restored.problem) == ("two", None)
            assert another.execute("x, y") == "(1, 2)"


def test_a_checkpoint_that_kills_a_warm_kernel_costs_the_names(root: Path) -> None:
    with warm(root) as factory, factory() as interpreter:
        interpreter.execute("import os\nclass Bomb:\n    def __reduce__(self): return os._exit, (3,)\nbomb = Bomb()")
        assert factory.wait_warm(SECONDS)
        assert "restoring them failed: it exited with status 3" in restored_after_death(interpreter)
        assert interpreter.execute("'bomb' in globals()") == "False"


def test_an_interpreter_with_other_options_starts_its_own(root: Path) -> None:
    with warm(root, confinement=Confinement(memory_bytes=2**31)) as factory:
        before = pids(root)
        with Quota().calling(runs_code=True):
            sub_agent = factory()  # has a share of the memory
        with sub_agent:
            assert before < pids(root)
            assert sub_agent.execute("6 * 7") == "42"
        other = KernelInterpreter(confinement="off", limits=Limits(cell_seconds=7), runtime_dir=root, warm=factory.warm)
        with other:
            assert before < pids(root)


@pytest.mark.parametrize(
    "trick",
    [
        "os.symlink('{secret}', place + '/checkpoint.0')",
        "os.link('{secret}', place + '/checkpoint.0')",
        "os.mkfifo(place + '/checkpoint.0')",
        "os.mkdir(place + '/checkpoint.0')",
    ],
)
def test_only_plain_files_move_to_the_next_kernel(root: Path, tmp_path: Path, trick: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(Slot("", turn=1, size=4, aside=False).packed() + b"host")
    left, taken = SessionDirectory(root), SessionDirectory(root)
    place = str(left.keep)
    os.unlink(f"{place}/checkpoint.0")
    exec(trick.format(secret=secret), {"os": os, "place": place})
    taken.receive_checkpoint(left, 10**6)
    assert [file.read_bytes() for file in sorted(taken.keep.iterdir())] == [b"", b""]
    for directory in (left, taken):
        directory.remove()


def test_a_checkpoint_that_is_too_large_stays_behind(root: Path) -> None:
    left, taken = SessionDirectory(root), SessionDirectory(root)
    whole = Slot("", turn=1, size=5000, aside=False).packed() + b"x" * 5000
    for most, copied in ((4000, b""), (10_000, whole)):
        (left.keep / "checkpoint.0").write_bytes(whole)
        taken.receive_checkpoint(left, most)
        assert (taken.keep / "checkpoint.0").read_bytes() == copied
    for directory in (left, taken):
        directory.remove()


def test_a_file_without_end_is_not_copied_where_the_disk_has_no_bound(root: Path) -> None:
    head = Slot("", turn=9, size=2**40 - 33, aside=False).packed()
    code = f"""
import os
from IPython import get_ipython
file = os.open(get_ipython().kernel.checkpoint._path + ".0", os.O_RDWR)
os.ftruncate(file, 2**40)
os.pwrite(file, {head!r}, 0)
os._exit(3)
"""
    with warm(root, confinement=Confinement(scratch_bytes=None)) as factory, factory() as interpreter:
        interpreter.start()
        assert factory.wait_warm(SECONDS)
        with pytest.raises(CodeExecutionError, match="no names, there were none"):
            interpreter.execute(code)


def test_kernels_that_cannot_be_kept_warm_are_told_of_once_and_fail_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: Callable[..., None]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    with KernelInterpreter.factory(prewarm=2, confinement="off", python=python) as factory:
        wait_until(lambda: "No kernel can be kept warm just now" in caplog.text, "it is told")
        for _ in range(2):
            with pytest.raises(CodeInterpreterError, match="status 3"):
                factory().start()
    assert caplog.text.count("No kernel can be kept warm") == 1


def test_a_copy_is_the_factory_and_a_pickle_has_kernels_of_its_own(root: Path) -> None:
    with warm(root) as factory:
        assert copy.deepcopy({"f": factory})["f"] is factory
        assert copy.copy(factory) is factory
        with pickle.loads(pickle.dumps(factory)) as other:
            assert (other.options, other.prewarm) == (factory.options, 1)
            assert other.wait_warm(SECONDS)
            assert len(pids(root)) == 2


def test_a_forgotten_factory_takes_its_kernels_with_it(root: Path, wait_until: Callable[..., None]) -> None:
    factory = KernelInterpreter.factory(prewarm=1, confinement="off", runtime_dir=root)
    assert factory.wait_warm(SECONDS)
    interpreter = factory()
    del factory
    interpreter.start()
    assert interpreter.execute("6 * 7") == "42"
    interpreter.shutdown()
    del interpreter
    wait_until(lambda: list(root.iterdir()) == [], "their end")
    assert pids(root) == set()


def test_a_closed_factory_makes_interpreters_that_start_their_own(root: Path) -> None:
    with warm(root) as factory:
        pass
    factory.close()
    with factory() as interpreter:
        assert interpreter.execute("6 * 7") == "42"
        assert "It exited" not in restored_after_death(interpreter)


HOST = """
import os, sys
from kernel_bridge import KernelInterpreter
if __name__ == "__main__":
    factory = KernelInterpreter.factory(prewarm=1, confinement="off", runtime_dir=sys.argv[1])
    assert factory.wait_warm(120)
    {then}
"""


@pytest.mark.parametrize("then", ["pass", "raise SystemExit", "KernelInterpreter.factory(prewarm=3)"])
def test_they_end_with_their_process(root: Path, then: str) -> None:
    output_of(fresh(HOST.replace("{then}", then), root))
    assert list(root.iterdir()) == []


def test_they_end_when_their_process_is_killed(root: Path, wait_until: Callable[..., None]) -> None:
    with fresh(HOST.replace("{then}", "print('ready', flush=True); sys.stdin.read()"), root) as host:
        host.wait_for("ready")
        processes = psutil.Process(host.pid).children(recursive=True)
        assert processes
        host.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(process.is_running() for process in processes), "the end of its kernels")
    wait_until(lambda: list(root.iterdir()) == [], "the end of its files")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_child_of_a_fork_has_none_and_may_have_its_own(root: Path) -> None:
    code = """
    child = os.fork()
    if not child:
        import json
        found = {"warm": len(factory.warm._stock._ready)}
        with factory() as interpreter:
            found["text"] = interpreter.execute("6 * 7")
        assert factory.wait_warm(120)
        with factory() as interpreter:
            found["again"] = interpreter.execute("6 * 7")
        factory.close()
        print(json.dumps(found), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with factory() as interpreter:
        assert interpreter.execute("6 * 7") == "42"
"""
    found = output_of(fresh(HOST.replace("    {then}", code), root))
    assert json.loads(found) == {"warm": 0, "text": "42", "again": "42"}
    assert list(root.iterdir()) == []


def test_they_are_taken_within_a_running_event_loop() -> None:
    code = "import asyncio\n    async def main(): return factory().execute('6 * 7')\n    print(asyncio.run(main()))"
    assert output_of(fresh(HOST.replace("sys.argv[1]", "None").replace("{then}", code))) == "42\n"


@pytest.mark.parametrize("prewarm", [-1, True, 1.5, "1"])
def test_a_wrong_number_of_warm_kernels_is_refused(prewarm: Any) -> None:
    with pytest.raises(ValueError, match="prewarm must be a whole number of 0 or more"):
        KernelInterpreter.factory(prewarm=prewarm)
