"""The interpreters of one compile: the agent's own, started early, and those of its sub-agents."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, cast

from dspy.primitives.code_interpreter import CodeInterpreter

from kernel_bridge import ConfinementReport, KernelInterpreter, KernelInterpreterFactory
from kernel_bridge.live.warm_kernels import WarmKernels
from kernel_bridge.text import traceback_shown
from kernel_bridge.wire import PageSource
from rlmoptimizer.errors import InvalidSetup, InvalidSetupType
from rlmoptimizer.events import KernelStarted

__all__ = ["AgentKernels", "InterpreterFactory", "kernel_started"]

logger = logging.getLogger(__name__)

# A KernelInterpreter bounds its own start (`Limits.start_seconds`); others may have to download themselves first.
_START_SECONDS: Final = 1800.0
_THINKING_SECONDS: Final = 0.5  # of the root LM, after which a kernel is started to take the place of the agent's
_JOIN_SECONDS: Final = 20.0  # how long `close` waits for a start under way; then it is left to itself


InterpreterFactory = Callable[[], CodeInterpreter]


def kernel_started(interpreter: CodeInterpreter) -> KernelStarted:
    """What an interpreter says of its own confinement; not every one does."""
    kind, report = type(interpreter).__name__, getattr(interpreter, "report", None)
    file = getattr(interpreter, "connection_file", None)
    if not isinstance(report, ConfinementReport):
        return KernelStarted(kind, f"{kind}, which does not say how it is confined", None)
    return KernelStarted(
        kind,
        report.line(),
        report.tier,
        requested=tuple(sorted(report.requested)),
        in_force=dict(report.in_force),
        missing=dict(report.missing),
        connection_file=str(file) if isinstance(file, Path) else None,
    )


class AgentKernels:
    """A DSPy `interpreter_factory` for one compile.

    The first call returns the agent's interpreter, already started; every later one makes a fresh one with the user's
    `factory`, for a sub-agent that runs code. Where that makes `KernelInterpreter`s, one kernel is kept warm, to take
    the place of the agent's own should that die; it is started while the root LM thinks. `close` shuts all of them
    down.

    Args:
        sub_agents: called before a sub-agent's interpreter is made; raises when nothing is left to ask its LM. None:
            there are no sub-agents.
        submit_validator, on_death, checkpoint_file, page_sources: set on the agent's own interpreter where it has such
            attributes; see `kernel_bridge.KernelInterpreter`.
    """

    def __init__(
        self,
        factory: InterpreterFactory,
        submit_validator: Callable[[dict[str, Any]], None],
        *,
        on_death: Callable[[], str] | None = None,
        checkpoint_file: Path | None = None,
        page_sources: Mapping[str, PageSource] | None = None,
        sub_agents: Callable[[], None] | None = None,
    ) -> None:
        self._factory = factory
        self._sub_agents = sub_agents
        self._own = {
            "submit_validator": submit_validator,
            "on_death": on_death,
            "checkpoint_file": checkpoint_file,
            "page_sources": page_sources,
        }
        self._kept_warm: KernelInterpreterFactory[KernelInterpreter] | None = None  # made here, for this compile alone
        self._lock = threading.Lock()
        self._agents: CodeInterpreter | None = None
        self._others: weakref.WeakSet[CodeInterpreter] = weakref.WeakSet()  # each of them ends with its sub-agent
        self._first: Future[CodeInterpreter] = Future()
        self._deadline = 0.0  # of the start
        self._starter: threading.Thread | None = None
        self._taken = False
        self._closed = False

    @property
    def execution_instructions(self) -> str:
        """Part of the agent's prompt, which DSPy reads from the factory."""
        return getattr(self._factory, "execution_instructions", "")

    def start(self, on_failure: Callable[[], None]) -> None:
        """Make and start the agent's interpreter on a thread of its own; `on_failure` is called there if that fails."""
        self._keep_warm()
        # DSPy's callbacks and settings are context variables.
        context = contextvars.copy_context()
        self._deadline = time.monotonic() + _START_SECONDS
        starter = threading.Thread(
            target=context.run, args=(self._start, on_failure), name="rlmoptimizer-kernel", daemon=True
        )
        starter.start()
        self._starter = starter  # one that could not be started cannot be joined

    def _keep_warm(self) -> None:
        given: Any = KernelInterpreter.factory() if self._factory is KernelInterpreter else self._factory
        if isinstance(given, KernelInterpreterFactory):
            factory = cast("KernelInterpreterFactory[KernelInterpreter]", given)
            self._factory = keeping = factory.keeping_warm(1)
            if keeping is not factory:
                self._kept_warm = keeping

    def _start(self, on_failure: Callable[[], None]) -> None:
        try:
            interpreter = self._make(own=True)
            for name, value in self._own.items():
                if value is not None and hasattr(interpreter, name):
                    setattr(interpreter, name, value)
            interpreter.start()
            if self._spare is not None:
                self._spare.rest()
            with self._lock:
                late = self._closed
            if late:  # `close` did not wait for it
                interpreter.shutdown()
        except BaseException as error:  # noqa: BLE001 - it is raised by `wait_started`, on the thread that compiles
            self._first.set_exception(error)
            on_failure()
        else:
            self._first.set_result(interpreter)

    def _make(self, *, own: bool) -> CodeInterpreter:
        interpreter: Any = self._factory()
        if not isinstance(interpreter, CodeInterpreter):
            raise InvalidSetupType(
                f"kernel made a {type(interpreter).__name__}; it must make a DSPy code interpreter, "
                "as KernelInterpreter.factory() does"
            )
        if self._sub_agents is not None and not isinstance(interpreter, KernelInterpreter):
            raise InvalidSetupType(
                f"kernel made a {type(interpreter).__name__}, which does not check what is asked of sub-agents; with "
                "sub_agents=True it must make a KernelInterpreter, as KernelInterpreter.factory() does"
            )
        with self._lock:
            if own:
                self._agents = interpreter
            else:
                self._others.add(interpreter)
            closed = self._closed
        if closed:
            interpreter.shutdown()
        return interpreter

    def wait_started(self) -> CodeInterpreter:
        """The agent's interpreter, when it runs.

        Raises what its start raised, and `InvalidSetup` when it takes too long.
        """
        wait([self._first], max(0.0, self._deadline - time.monotonic()))
        if not self._first.done():
            raise InvalidSetup(
                f"the agent's interpreter has not started within {_START_SECONDS:g} s; look at what `kernel` makes"
            )
        return self._first.result()

    def __call__(self) -> CodeInterpreter:
        with self._lock:
            first, self._taken = not self._taken, True
        if first:
            return self.wait_started()
        if self._sub_agents is None:
            raise RuntimeError("an interpreter was asked for a sub-agent, and there are none")
        self._sub_agents()
        return self._make(own=False)

    @contextlib.contextmanager
    def while_root_thinks(self) -> Generator[None]:
        """A block in which the agent's kernel has nothing to do: another one may be started beside it."""
        with contextlib.nullcontext() if self._spare is None else self._spare.at_leisure(_THINKING_SECONDS):
            yield

    @property
    def _spare(self) -> WarmKernels | None:
        return None if self._kept_warm is None else self._kept_warm.warm

    def interrupt(self) -> None:
        """Stop the cell that the agent is running, where the interpreter can do that."""
        if not self._first.done() or self._first.exception() is not None:
            return
        interrupt = getattr(self._first.result(), "interrupt", None)
        if callable(interrupt):
            try:
                interrupt()
            except Exception as error:  # noqa: BLE001 - a foreign interpreter; it is logged
                logger.warning("The agent's cell could not be interrupted:\n%s", traceback_shown(error))

    def close(self) -> None:
        """Shut down every interpreter that was made. Idempotent.

        Waits for one that is being started, but not for ever. The interpreter bounds its own shutdown.
        """
        with self._lock:
            # The maker of an interpreter that is being made sees this and shuts it down.
            self._closed = True
            own = () if self._agents is None else (self._agents,)
            others = tuple(self._others)
        if self._starter is not None:
            # Not every interpreter can be shut down while another thread starts it.
            self._starter.join(_JOIN_SECONDS)
            if self._starter.is_alive():
                logger.warning("The agent's interpreter is still being started; it is shut down when that has ended")
                own = ()
        with ExitStack() as stack:
            if self._kept_warm is not None:
                stack.callback(self._kept_warm.close)
            for interpreter in (*own, *others):
                stack.callback(interpreter.shutdown)
