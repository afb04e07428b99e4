"""KernelInterpreter as DSPy's protocol asks for it: its life, where it can be used from, its callbacks."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import psutil
import pytest
from child_process import forked, output_of
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreter, CodeInterpreterError
from dspy.utils.callback import BaseCallback

from kernel_bridge import Confinement, KernelInterpreter, KernelInterpreterFactory, Limits
from kernel_bridge.threads.blocked_loop import watch_running_loop

# -- lifecycle ---------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_it_is_what_dspy_calls_an_interpreter(kernel: KernelInterpreter) -> None:
    assert isinstance(kernel, CodeInterpreter)
    assert kernel.execute("print('hello'); 6 * 7") == "hello\n42"


def test_it_starts_with_its_first_cell_and_only_once() -> None:
    interpreter = KernelInterpreter(confinement="off")
    assert interpreter.connection_file is None
    assert interpreter.report is None
    interpreter.execute("import os; pid = os.getpid()")
    file = interpreter.connection_file
    assert file is not None
    assert file.is_file()
    assert interpreter.report is not None
    interpreter.start()
    interpreter.start()
    assert interpreter.execute("pid == os.getpid()") == "True"
    assert interpreter.connection_file == file
    interpreter.shutdown()
    assert interpreter.connection_file is None
    assert not file.parent.exists()


def test_shutdown_is_final_and_can_be_said_twice() -> None:
    interpreter = KernelInterpreter(confinement="off")
    interpreter.execute("1")
    for _ in range(2):
        interpreter.shutdown()
        with pytest.raises(CodeInterpreterError, match="shut down") as failure:
            interpreter.execute("1")
        assert not isinstance(failure.value, CodeExecutionError)
        with pytest.raises(CodeInterpreterError, match="shut down"):
            interpreter.start()


def test_one_that_never_started_shuts_down_too() -> None:
    interpreter = KernelInterpreter()
    interpreter.shutdown()
    with pytest.raises(CodeInterpreterError):
        interpreter.start()


def test_a_ctrl_c_while_a_cell_runs_is_not_shown_as_following_another_error() -> None:
    with pytest.raises(KeyboardInterrupt) as pressed, watch_running_loop():
        raise KeyboardInterrupt
    assert pressed.value.__context__ is None


def test_it_is_a_context_manager_and_a_function() -> None:
    with KernelInterpreter(confinement="off") as interpreter:
        assert interpreter.connection_file is not None
        assert interpreter("x + 1", {"x": 1}) == "2"
    with pytest.raises(CodeInterpreterError):
        interpreter("1")


def test_a_forgotten_one_takes_its_kernel_with_it(wait_until: Callable[..., None]) -> None:
    before = set(psutil.Process().children(recursive=True))
    interpreter = KernelInterpreter(confinement="off")
    interpreter.execute("1")
    assert set(psutil.Process().children(recursive=True)) - before
    gone = weakref.ref(interpreter)
    del interpreter
    gc.collect()
    assert gone() is None
    wait_until(lambda: not set(psutil.Process().children(recursive=True)) - before, "the kernel's end")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"restarts": -1}, "restarts must be a whole number"),
        ({"restarts": True}, "restarts must be a whole number"),
        ({"restarts": 1.5}, "restarts must be a whole number"),
        ({"tools": {"not valid": print}}, "'not valid'"),
        ({"tools": {"class": print}}, "'class'"),
        ({"tools": {"SUBMIT": print}}, "'SUBMIT'"),
        ({"tools": {"__builtins__": print}}, "__builtins__"),
        ({"output_fields": [{"name": "a b"}]}, "'a b'"),
        ({"output_fields": [{"type": "str"}]}, "None"),
        ({"output_fields": [{"name": "a"}, {"name": "a"}]}, "differ from each other"),
        ({"output_fields": ["answer"]}, "output_fields must be a list of dicts"),
        ({"output_fields": "answer"}, "output_fields must be a list of dicts"),
        ({"tools": [print]}, "tools must be a dict"),
        ({"tools": {"f": 3}}, "tools must be a dict from names to functions, not {'f': 3}"),
        ({"limits": 60}, "limits must be a Limits or None, not 60"),
        ({"confinement": "strict"}, "confinement must be"),
        ({"confinement": {"magic"}}, "the guarantees are"),
        ({"python": 3}, "python must be a path"),
        ({"runtime_dir": 3}, "runtime_dir must be a path"),
        ({"checkpoint": "yes"}, "checkpoint must be True or False"),
        ({"submit_validator": 3}, "submit_validator must be a function"),
        ({"callbacks": 3}, "callbacks must be a list"),
        ({"warm": 3}, "warm must be what a factory"),
    ],
)
@pytest.mark.parametrize("make", [KernelInterpreter, KernelInterpreter.factory])
def test_a_wrong_option_is_refused_at_once(make: Callable[..., Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(**options)


def test_an_unknown_option_is_a_type_error_at_once() -> None:
    with pytest.raises(TypeError, match="colour"):
        KernelInterpreter.factory(colour="red")


@pytest.mark.parametrize("name", Limits.__slots__)
@pytest.mark.parametrize("value", [0, -1, True, "9", None, float("nan")])
def test_a_wrong_limit_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"Limits\.{name} must be a positive"):
        Limits(**{name: value})


def test_a_factory_makes_a_fresh_one_at_each_call_and_says_where_code_runs() -> None:
    factory = KernelInterpreter.factory(confinement="off", limits=Limits(cell_seconds=5))
    assert isinstance(factory, KernelInterpreterFactory)
    assert not isinstance(factory, CodeInterpreter)
    assert factory.execution_instructions == factory().execution_instructions
    assert "longer than 5 s" in factory.execution_instructions
    assert KernelInterpreter.execution_instructions == KernelInterpreter.factory().execution_instructions
    with factory() as one, factory() as other:
        assert one is not other
        one.execute("mine = 1")
        with pytest.raises(CodeExecutionError, match="name 'mine' is not defined"):
            other.execute("mine")


def test_a_start_that_fails_says_why() -> None:
    with pytest.raises(CodeInterpreterError, match="/no/such/python"):
        KernelInterpreter(python="/no/such/python", confinement="off").start()
    with pytest.raises(CodeInterpreterError, match="1e-06 s"):
        KernelInterpreter(limits=Limits(start_seconds=1e-6), confinement="off").start()


def test_a_runtime_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    interpreter = KernelInterpreter(runtime_dir=tmp_path / "file" / "below", confinement="off")
    with pytest.raises(CodeInterpreterError, match=r"the runtime directory '.+below' cannot be used"):
        interpreter.start()


def test_what_cannot_be_guaranteed_is_not_started() -> None:
    everything = Confinement(require=frozenset({"cpu_capped"}))
    with pytest.raises(CodeInterpreterError, match=r"cpu_capped: .+confinement=\"auto\""):
        KernelInterpreter(confinement=everything).start()


# -- where it can be used from -----------------------------------------------------------------------------------------


def test_it_works_inside_a_running_event_loop(kernel: KernelInterpreter) -> None:
    async def tool() -> str:
        await asyncio.sleep(0)
        return "awaited on the host"

    async def main() -> Any:
        kernel.tools["tool"] = tool
        return kernel.execute("tool()")

    assert asyncio.run(main()) == "awaited on the host"


def test_threads_may_use_it_one_after_the_other(kernel: KernelInterpreter) -> None:
    kernel.execute("seen = []")
    for number in range(4):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(kernel.execute, f"seen.append({number})").result()
    assert kernel.execute("seen") == "[0, 1, 2, 3]"


def test_a_second_cell_at_the_same_time_is_refused(kernel: KernelInterpreter) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait() -> str:
        entered.set()
        assert leave.wait(30)
        return "first"

    kernel.tools["wait"] = wait
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(kernel.execute, "wait()")
        assert entered.wait(30)
        with pytest.raises(CodeInterpreterError, match="already running"):
            kernel.execute("1")
        leave.set()
        assert first.result() == "first"
    assert kernel.execute("1") == "1"


def test_several_run_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=60)
    with ThreadPoolExecutor(3) as pool:

        def one(number: int) -> Any:
            with KernelInterpreter({"meet": meeting.wait}, confinement="off") as interpreter:
                interpreter.execute(f"me = {number}")
                interpreter.execute("meet()")
                return interpreter.execute("me")

        assert list(pool.map(one, range(3))) == ["0", "1", "2"]


# -- callbacks ---------------------------------------------------------------------------------------------------------


class Recorder(BaseCallback):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_interpreter_startup_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.events.append("start")

    def on_interpreter_startup_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self.events.append(("started", exception))

    def on_interpreter_execute_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.events.append(("execute", inputs["code"]))

    def on_interpreter_execute_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self.events.append(("executed", outputs, type(exception).__name__))

    def on_interpreter_tool_call_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.events.append(("tool", inputs["tool_name"], inputs["args"], inputs["kwargs"]))

    def on_interpreter_tool_call_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self.events.append(("tool done", outputs, type(exception).__name__))

    def on_interpreter_shutdown_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.events.append("shutdown")


def _drive(make: Callable[..., Any], recorder: Recorder) -> list[Any]:
    def fail() -> None:
        raise ValueError("no")

    interpreter = make(tools={"add": lambda a, b: a + b, "fail": fail}, callbacks=[recorder])
    assert str(interpreter.execute("add(1, b=2)")) == "3"
    with pytest.raises(CodeExecutionError):
        interpreter.execute("fail()")
    interpreter.shutdown()
    return [event if isinstance(event, str) else event[0] for event in recorder.events]


def test_callbacks_see_what_they_see_of_dspys_own_interpreter() -> None:
    ours, theirs = Recorder(), Recorder()
    assert _drive(_off, ours) == _drive(dspy.LocalInterpreter, theirs)
    assert ("tool", "add", [1], {"b": 2}) in ours.events
    assert ("tool done", 3, "NoneType") in ours.events
    assert ("tool done", None, "ValueError") in ours.events
    assert ("executed", None, "CodeExecutionError") in ours.events


def _off(**options: Any) -> KernelInterpreter:
    return KernelInterpreter(**options, confinement="off")


def test_callbacks_of_the_settings_fire_too(kernel: KernelInterpreter) -> None:
    recorder = Recorder()
    kernel.tools["tool"] = lambda: 1
    with dspy.context(callbacks=[recorder]):
        kernel.execute("tool()")
    assert [event[0] for event in recorder.events] == ["execute", "tool", "tool done", "executed"]


def test_a_runtime_directory_of_ones_own_is_used_and_left_empty(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as folder:  # sockets have to fit below it
        short = Path(folder) / "made"
        with KernelInterpreter(runtime_dir=short, confinement="off") as interpreter:
            assert interpreter.connection_file is not None
            assert interpreter.connection_file.is_relative_to(short)
        assert list(short.iterdir()) == []
    with pytest.raises(CodeInterpreterError, match="bytes long; sockets below it need a path"):
        KernelInterpreter(runtime_dir=tmp_path / ("x" * 100), confinement="off").start()


STARTS_WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
from kernel_bridge import KernelInterpreter
root = Path(sys.argv[1])
for most in (0, 100, 600):  # bytes of one file: of a session's own, and of what its kernel is launched with
    interpreter = KernelInterpreter(runtime_dir=root, confinement="off")
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    try: interpreter.start()
    except Exception as error: failed = error
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(type(failed).__name__, "File too large" in str(failed), list(root.iterdir()))
"""


@pytest.mark.skipif(os.name != "posix", reason="no such limits")
def test_a_start_that_finds_no_room_for_its_files_says_so_and_leaves_none() -> None:
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as root:
        found = output_of(forked(STARTS_WITHOUT_ROOM, root))
    assert found.splitlines() == ["CodeInterpreterError True []"] * 3
