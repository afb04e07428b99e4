"""The private names of others that this project touches: each with a test that fails when it is gone or means another.

Nobody promises that such a name is in the next release. A new one gets its test and its line in the table; a walk over
the sources finds those that have none. The tests are part of the smoke tests, which run with the lowest and the newest
releases too.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import importlib
import inspect
import json
import os
import re
import threading
import warnings
from collections.abc import Set
from pathlib import Path
from types import ModuleType
from typing import Any

import dspy
import pytest
import zmq
from child_process import fresh, output_of
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream

pytestmark = pytest.mark.smoke

# By the name: the test below that says what we need of it.
TESTED_BY = {
    # dspy
    "_build_variables": "test_a_step_of_dspys_rlm_is_called_as_we_replace_it",
    "_execute_code": "test_a_step_of_dspys_rlm_is_called_as_we_replace_it",
    "_execute_iteration": "test_a_step_of_dspys_rlm_is_called_as_we_replace_it",
    "_extract_fallback": "test_a_step_of_dspys_rlm_is_called_as_we_replace_it",
    "_build_signatures": "test_a_step_of_dspys_rlm_is_called_as_we_replace_it",
    "_get_output_fields_info": "test_a_step_of_dspys_rlm_is_called_as_we_replace_it",
    "_initial_interpreter_rules": "test_dspys_rlm_finds_its_rules_in_instructions_that_are_ours",
    "_make_interpreter_tool": "test_a_step_of_dspys_rlm_is_called_as_we_replace_it",
    "_prepare_execution_tools": "test_a_step_of_dspys_rlm_is_called_as_we_replace_it",
    "_process_final_output": "test_a_step_of_dspys_rlm_is_called_as_we_replace_it",
    "_setup_facade": "test_a_step_of_dspys_rlm_is_called_as_we_replace_it",
    "_compiled": "test_dspy_marks_what_an_optimizer_returned",
    "_custom_types": "test_dspys_facade_keeps_what_its_module_gave_it",
    "_originals": "test_dspys_facade_keeps_what_its_module_gave_it",
    "_tools": "test_dspys_facade_keeps_what_its_module_gave_it",
    "_deprecation": "test_a_call_marked_as_an_adapters_is_not_warned_of",
    "_price_result": "test_dspy_prices_an_answer_and_says_why_it_cannot",
    # ipykernel and IPython
    "_main_asyncio_lock": "test_ipykernel_takes_one_message_after_the_other_under_a_lock",
    "_configure_logging": "test_a_traitlets_application_sets_up_its_logging_by_one_method",
    "_mkdir": "test_ipython_makes_the_directories_of_a_profile_by_one_method",
    "_use_appnope": "test_ipykernel_asks_its_event_loops_for_macos_alone",
    "_cancel_on_sigint": "test_what_ipykernel_asks_of_a_kernel_while_a_cell_runs",
    "_execute_sleep": "test_what_ipykernel_asks_of_a_kernel_while_a_cell_runs",
    "_abort_queues": "test_what_ipykernel_asks_of_a_kernel_while_a_cell_runs",
    "_publish_status": "test_what_ipykernel_asks_of_a_kernel_while_a_cell_runs",
    "_supports_kernel_subshells": "test_what_ipykernel_asks_of_a_kernel_while_a_cell_runs",
    "_last_traceback": "test_what_ipykernel_asks_of_a_kernel_while_a_cell_runs",
    "_is_debugpy_available": "test_ipykernel_asks_its_debugger_module_whether_there_is_one",
    "_tee": "test_ipython_captures_the_streams_of_a_cell_by_one_method",
    # pyzmq
    "_handle_events": "test_pyzmq_hands_the_events_of_a_stream_to_one_method",
    # rich
    "_refresh_thread": "test_a_live_display_keeps_its_refreshing_thread_while_it_runs",
    # the standard library
    "_ctypes": "test_ctypes_calls_a_function_of_the_process_by_its_name",
    "_processes": "test_a_process_pool_knows_its_processes",
    "_set_running_loop": "test_code_runs_as_if_an_event_loop_called_it",
    "_signal": "test_signals_have_a_module_in_c",
    "_thread_id": "test_code_runs_as_if_an_event_loop_called_it",
    # documented, in spite of the underscore
    "_exit": "test_documented_names_are_there",
    "_fields": "test_documented_names_are_there",
}

ROOT = Path(__file__).resolve().parents[2]
OURS = ("kernel_bridge", "rlmoptimizer")


# -- the walk ------------------------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_")


@functools.cache
def sources() -> list[tuple[str, ast.Module]]:
    """Every module of the two packages, as its dotted name and its syntax."""
    found: list[tuple[str, ast.Module]] = []
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found.append((name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def defined(scope: ast.AST) -> set[str]:
    """The private names that are given a meaning in a module or a class."""
    found: set[str] = set()
    for node in ast.walk(scope):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            found.add(node.attr)
    return set(filter(is_private, found))


def is_own(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


BY_NAME = ("getattr", "setattr", "hasattr", "delattr", "attrgetter")


def used(tree: ast.Module, inherited: Set[str] = frozenset()) -> set[str]:
    """The private names that a module uses of other objects, or that others' modules have.

    `inherited`: names that a class may have from another of ours, in whose instances they are not others'.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not (is_own(node.value) and node.attr in inherited):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in BY_NAME:
            texts = [text.value for text in node.args if isinstance(text, ast.Constant) and isinstance(text.value, str)]
            found.update(part for text in texts for part in text.split("."))
        elif isinstance(node, ast.Import):
            found.update(part for name in node.names for part in name.name.split("."))
        elif isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith(OURS):
            found.update((node.module or "").split("."), (name.name for name in node.names))
    return set(filter(is_private, found))


# Run in another process: some modules of ours change what is imported after them.
OVERRIDING = """
import functools, importlib, inspect, json, re, sys
@functools.cache
def text_of(module):
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):  # written in C
        return ""
found = {}
for module, classes in json.loads(sys.argv[1]).items():
    for path, names in classes.items():
        kind = importlib.import_module(module)
        for part in path.split("."):
            kind = getattr(kind, part)
        others = [base for base in kind.__mro__ if not base.__module__.startswith(("kernel_bridge", "rlmoptimizer"))]
        for name in names:
            for base in others:
                text = text_of(base.__module__)
                if name in vars(base) or re.search(rf"\\b(self|cls|kernel|shell)\\.{name}\\b", text):
                    found.setdefault(name, f"{module}:{path}")
print(json.dumps(found))
"""


def overriding() -> set[str]:
    """The private names of our classes that a foreign base has too, or uses."""
    asked: dict[str, dict[str, list[str]]] = {}
    for module, tree in sources():
        if module.endswith("__main__"):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.bases and (names := defined(node)):
                asked.setdefault(module, {})[node.name] = sorted(names)
    return set(json.loads(output_of(fresh(OVERRIDING, json.dumps(asked), directory=ROOT))))


def test_every_private_name_of_others_is_in_the_table_and_no_other() -> None:
    met = overriding()
    written: set[str] = set()
    given = [(tree, defined(tree)) for _, tree in sources()]
    ours = {name for _, names in given for name in names}
    for tree, names in given:
        met |= used(tree, inherited=ours) - names
        written |= used(tree) | names
    assert met <= set(TESTED_BY), "touched, and without a test"
    assert written >= set(TESTED_BY), "tested, and no longer touched"
    assert all(callable(globals().get(test)) for test in TESTED_BY.values())


def test_classes_that_the_walk_cannot_look_at_define_no_private_names() -> None:
    for module, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.bases and node not in tree.body:
                assert not defined(node), f"{module}: {node.name}"


# -- what we need of each -------------------------------------------------------------------------------------------


def text_of(module: ModuleType | type) -> str:
    return inspect.getsource(module)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_build_variables", "self **input_args"),
        ("_execute_code", "self repl code input_args"),
        ("_execute_iteration", "self repl variables history iteration input_args output_field_names"
                               " interpreter_factory sub_agent_rules"),
        ("_extract_fallback", "self variables history output_field_names"),
        ("_build_signatures", "self"),
        ("_get_output_fields_info", "self"),
        ("_make_interpreter_tool", "self tool"),
        ("_prepare_execution_tools", "self budget"),
        ("_process_final_output", "self result output_field_names"),
        ("_setup_facade", "self repl budget interpreter_factory"),
    ],
)  # fmt: skip
def test_a_step_of_dspys_rlm_is_called_as_we_replace_it(name: str, parameters: str) -> None:
    found = inspect.signature(getattr(dspy.RLM, name)).parameters.values()
    assert [str(one).partition(":")[0].partition("=")[0] for one in found] == parameters.split()
    assert re.search(rf"\bself\.{name}\(", text_of(dspy.RLM))


def test_dspys_rlm_finds_its_rules_in_instructions_that_are_ours() -> None:
    rlm = dspy.RLM("question -> answer", interpreter_factory=dspy.LocalInterpreter)
    rules = rlm._initial_interpreter_rules
    assert "Sub-agents (dspy)" in rules
    rlm.generate_action.signature = rlm.generate_action.signature.with_instructions(f"Ours.\n{rules}\n# Tools")
    found = rlm._action_signature_for_current_factory(dspy.LocalInterpreter, "").instructions
    assert "Sub-agents (dspy)" not in found
    assert found.startswith("Ours.\n")
    assert found.endswith("\n# Tools")


def test_dspys_facade_keeps_what_its_module_gave_it() -> None:
    from dspy.primitives.facade import FacadeInvocation

    tools: dict[str, Any] = {"add": dspy.Tool(max)}
    types: dict[str, type] = {"Mine": int}
    originals: dict[str, Any] = {"text": object()}
    facade = FacadeInvocation(tools, list, None, custom_types=types, originals=originals)
    assert (facade._tools, facade._custom_types, facade._originals) == (tools, types, originals)


def test_ctypes_calls_a_function_of_the_process_by_its_name() -> None:
    import _ctypes

    found = _ctypes.dlsym(_ctypes.dlopen(None, 0), "getpid")
    assert _ctypes.call_function(found, ()) == os.getpid()


def test_signals_have_a_module_in_c() -> None:
    import _signal
    import signal

    assert int(signal.SIG_DFL) == _signal.SIG_DFL
    assert _signal.NSIG == signal.NSIG
    assert int(signal.SIG_SETMASK) == _signal.SIG_SETMASK
    # What it does is what the public module does, without the names of an enum.
    assert signal.getsignal(signal.SIGUSR1) == _signal.getsignal(signal.SIGUSR1)
    assert callable(_signal.signal)
    assert callable(_signal.pthread_sigmask)
    assert callable(_signal.set_wakeup_fd)
    for name in ("SIGINT", "SIGHUP", "SIGTERM", "SIGPIPE", "SIGCHLD", "SIGKILL", "SIG_IGN"):
        assert getattr(_signal, name) == int(getattr(signal, name))


def test_dspy_marks_what_an_optimizer_returned() -> None:
    student = dspy.Predict("question -> answer")
    assert student._compiled is False
    compiled = dspy.LabeledFewShot(k=1).compile(student, trainset=[dspy.Example(question="1", answer="2")])
    # That one does not mark its result; those that do, and those that ask, use the name as we do.
    assert compiled._compiled is False
    from dspy.teleprompt import bootstrap

    assert "student._compiled = True" in text_of(bootstrap)
    assert 'getattr(self.student, "_compiled", False)' in text_of(bootstrap)


def test_a_call_marked_as_an_adapters_is_not_warned_of() -> None:
    try:
        from dspy.clients import _deprecation
    except ImportError:
        pytest.fail("DSPy has no legacy warning any more: take the marking out of rlmoptimizer/lms/sub_lm.py")
    lm, messages = object(), [{"role": "user", "content": "hello"}]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _deprecation.adapter_message_call(lm, messages):
            _deprecation.warn_openai_messages(lm, messages)
        assert not caught
        _deprecation.warn_openai_messages(lm, messages)
        assert len(caught) == 1


def test_dspy_prices_an_answer_and_says_why_it_cannot() -> None:
    from dspy.clients import call_result, execution
    from dspy.lm15 import Message, Response, Usage

    parameters = list(inspect.signature(execution._price_result).parameters)
    assert parameters == ["lm", "result", "response", "provider", "request"]
    lm = dspy.LM("openai/no-such-model-of-anyone", api_key="x")
    usage = Usage(input_tokens=1, output_tokens=1, total_tokens=2)
    answer = Response(
        id=None, model="no-such-model-of-anyone", message=Message.assistant("a"), finish_reason="stop", usage=usage
    )
    result = call_result.CallResult()
    execution._price_result(lm, result, answer, "openai", None)
    assert result.cost is None
    assert isinstance(result.cost_details["reason"], str)


def test_ipykernel_takes_one_message_after_the_other_under_a_lock() -> None:
    from ipykernel import kernelbase

    text = text_of(kernelbase)
    assert "self._main_asyncio_lock = asyncio.Lock()" in text
    assert "asyncio_lock = self._main_asyncio_lock" in text
    assert "async with asyncio_lock:\n            await self.dispatch_shell(msg" in text


def test_code_runs_as_if_an_event_loop_called_it() -> None:
    loop = asyncio.new_event_loop()

    async def later() -> int:
        return 5

    try:
        asyncio._set_running_loop(loop)
        loop._thread_id = threading.get_ident()  # type: ignore[attr-defined]
        assert loop.is_running()
        assert asyncio.get_running_loop() is loop
        task = loop.create_task(later())
        asyncio._set_running_loop(None)
        loop._thread_id = None  # type: ignore[attr-defined]
        assert not loop.is_running()
        assert loop.run_until_complete(task) == 5
    finally:
        loop.close()


def test_what_ipykernel_asks_of_a_kernel_while_a_cell_runs() -> None:
    from ipykernel import ipkernel, kernelbase, zmqshell

    base, kernel = text_of(kernelbase), text_of(ipkernel)
    assert kernelbase.Kernel._execute_sleep.default_value > 0
    assert "if self._execute_sleep:" in base
    assert "if self._supports_kernel_subshells:" in base
    assert isinstance(kernelbase.Kernel._supports_kernel_subshells, property)
    assert "self._abort_queues(" in base
    assert not inspect.iscoroutinefunction(kernelbase.Kernel._abort_queues)
    parameters = list(inspect.signature(kernelbase.Kernel._publish_status).parameters)
    assert parameters == ["self", "status", "channel", "parent"]
    assert len(re.findall(r"self\._publish_status(?:_and_flush)?\(", base)) > 2
    assert list(inspect.signature(ipkernel.IPythonKernel._cancel_on_sigint).parameters) == ["self", "future"]
    assert re.search(r"[^`\w]self\._cancel_on_sigint\b", kernel)
    assert "shell._last_traceback" in kernel
    assert "self._last_traceback = stb" in text_of(zmqshell)


def test_ipykernel_asks_its_debugger_module_whether_there_is_one() -> None:
    from ipykernel import debugger, ipkernel

    assert debugger._is_debugpy_available in (True, False)
    assert "from .debugger import _is_debugpy_available" in text_of(ipkernel)


def test_ipykernel_asks_its_event_loops_for_macos_alone() -> None:
    from ipykernel import eventloops, ipkernel

    assert isinstance(eventloops._use_appnope(), bool)
    assert 'sys.platform == "darwin"' in inspect.getsource(eventloops._use_appnope)
    assert "import _use_appnope" in text_of(ipkernel)


def test_a_traitlets_application_sets_up_its_logging_by_one_method() -> None:
    from traitlets.config import application

    assert list(inspect.signature(application.Application._configure_logging).parameters) == ["self"]
    assert text_of(application).count("dictConfig(") == 1


def test_ipython_makes_the_directories_of_a_profile_by_one_method() -> None:
    from IPython.core import profiledir

    assert list(inspect.signature(profiledir.ProfileDir._mkdir).parameters) == ["self", "path", "mode"]
    assert text_of(profiledir).count("os.mkdir(") == 2


def test_pyzmq_hands_the_events_of_a_stream_to_one_method() -> None:
    handled: list[object] = []

    class Stream(ZMQStream):
        def _handle_events(self, fd: Any, events: int) -> None:
            handled.append(self.socket.recv())
            loop.stop()

    context: zmq.Context[Any] = zmq.Context()
    loop = IOLoop(make_current=False)
    near, far = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    near.bind("inproc://stream")
    far.connect("inproc://stream")
    stream = Stream(near, loop)
    try:
        far.send(b"seen")
        loop.start()
        assert handled == [b"seen"]
    finally:
        stream.close()
        far.close()
        context.term()
        loop.close()


def test_ipython_captures_the_streams_of_a_cell_by_one_method() -> None:
    import IPython
    from IPython.core import interactiveshell

    if IPython.version_info[0] < 9:  # the last one for Python 3.10 captures nothing
        assert "history_manager.outputs" not in text_of(interactiveshell)
        return
    assert list(inspect.signature(interactiveshell.InteractiveShell._tee).parameters) == ["self", "channel"]
    assert 'with self._tee(channel="stdout"), self._tee(channel="stderr"):' in text_of(interactiveshell)


def test_a_live_display_keeps_its_refreshing_thread_while_it_runs() -> None:
    import io

    from rich.console import Console
    from rich.live import Live

    live = Live(console=Console(file=io.StringIO(), force_terminal=True), auto_refresh=True)
    live.start()
    thread: Any = live._refresh_thread
    try:
        assert isinstance(thread, threading.Thread)
        assert thread.is_alive()
    finally:
        live.stop()
        thread.join(60)
    assert not thread.is_alive()


def test_a_process_pool_knows_its_processes() -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(abs, -1).result() == 1
        (process,) = pool._processes.values()
        assert process.is_alive()


def test_documented_names_are_there() -> None:
    from collections import namedtuple

    assert callable(importlib.import_module("os")._exit)
    assert namedtuple("Pair", "a b")._fields == ("a", "b")


def test_dspy_gives_its_own_variables_the_names_that_we_know_them_by() -> None:
    # Not names of attributes but of variables in the kernel, known in interpreter.py and in inside/kernel.py.
    from dspy.predict import rlm
    from dspy.predict.flex import bridge
    from dspy.primitives import facade

    assert facade.HOST_TOKEN_VAR == "__dspy_host_token"
    assert bridge._INPUTS_VAR == "__dspy_flex_inputs"
    assert 'raw_var_name = f"_raw_{name}"' in text_of(rlm)
    assert 'name == "dspy" or name.startswith(("_dspy", "__dspy"))' in text_of(facade)
