"""KernelInterpreter: DSPy's CodeInterpreter protocol over a session. DSPy is imported here and in `with_dspy`."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from dspy.primitives.code_interpreter import CodeInterpreterError
from dspy.primitives.example import Example
from dspy.utils import callback as dspy_callbacks
from dspy.utils.callback import BaseCallback

from kernel_bridge.agent_text.instructions import execution_instructions
from kernel_bridge.cells import Cell, CellHost, Death, Restored
from kernel_bridge.confine import Confinement, ConfinementReport, limits_asked
from kernel_bridge.errors import BridgeError, NotSendable, SessionBusy
from kernel_bridge.interpreter_factory import KernelInterpreterFactory
from kernel_bridge.live.bindings import check_names, checked_fields, checked_page_sources, checked_tools
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.live.warm_kernels import WarmKernels
from kernel_bridge.options import Limits, refuse_unless
from kernel_bridge.session import KernelSession
from kernel_bridge.sub_agents.facade_guard import FacadeGuard
from kernel_bridge.sub_agents.quota import Quota
from kernel_bridge.wire import PageSource
from kernel_bridge.with_dspy.binding import RealDSPy
from kernel_bridge.with_dspy.cell_answer import cell_answer

__all__ = ["KernelInterpreter", "KernelInterpreterFactory"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def with_callbacks(method: _Method) -> _Method:
    """DSPy's decorator of the same name, with a type."""
    return cast("_Method", cast("Any", dspy_callbacks).with_callbacks(method))


class _Instructions:
    """`execution_instructions`: of an instance, for its own options; of the class, for those that it has by default."""

    def __get__(self, made: KernelInterpreter | None, kind: type[KernelInterpreter]) -> str:
        session = (KernelInterpreter() if made is None else made)._session  # pyright: ignore[reportPrivateUsage]
        try:
            return execution_instructions(session.options)
        except BridgeError as error:
            raise CodeInterpreterError(str(error)) from error


class KernelInterpreter:
    """Runs DSPy's generated code in a Jupyter kernel of its own, which can call tools on the host.

    Usable as `interpreter_factory=KernelInterpreter` in `dspy.RLM`, `Flex`, `dspy.configure`, and `CodeAct` and
    `ProgramOfThought`, which DSPy 3.5 will drop. One thread at a time may execute; `interrupt` and `shutdown` may come
    from any thread.

    Args:
        tools: host functions by name, sync or async. Read afresh at every `execute`.
        output_fields: what `SUBMIT` takes, as `[{"name": ..., "type"?: ...}]`; None: one value named "output".
            Read afresh at every `execute`.
        python: another environment's interpreter; it needs ipykernel and msgspec, nothing of this package.
        limits: bounds of time and size.
        confinement: `"auto"`, `"required"`, `"off"`, a set of guarantees, or a `Confinement`.
        restarts: after how many deaths in a row, with no good cell between, the session is over. 0: the first death
            is the end, as in DSPy's own interpreters.
        checkpoint: keep the namespace across the death of a kernel.
        runtime_dir: where the session's private directory is made; None: the user's runtime directory.
        checkpoint_file: where the last namespace checkpoint is kept, readable only by its owner, also when this
            process is killed: an interpreter of another process that is made with the same file, and the same Python,
            begins with it (`restored` tells how that went). One interpreter at a time may have it. Nothing but a kernel
            ever loads it. Read at `start`.
        on_death: called when a kernel has died under a cell, before another one starts; what it returns is told to
            the agent in the error. Read afresh at every `execute`.
        submit_validator: called on the host with the fields of every SUBMIT, as a dict. Raising refuses the
            submission: the agent's code gets an exception with the same class name and message, and goes on.
        callbacks: DSPy callbacks for start, execute, invoke_tool and shutdown.
        page_sources: what the lists that tools return as `PagedList` are read from, by name: functions of a key, a
            start and a stop, which come from the kernel and must be checked. Read afresh at every `execute`.
        warm: where it takes a kernel that is ready, at its start and when its kernel has died; see `factory`.

    Raises:
        ValueError: an option is not what it must be.
        ConfinementUnavailable: at `start`, when guarantees were asked for that this machine cannot give.

    In a fork of the process that started the kernel, `execute` and `start` raise `CodeInterpreterError`.
    """

    execution_instructions = _Instructions()

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
        *,
        python: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
        confinement: str | Confinement | frozenset[str] | set[str] = "auto",
        restarts: int = 3,
        checkpoint: bool = True,
        runtime_dir: str | os.PathLike[str] | None = None,
        checkpoint_file: str | os.PathLike[str] | None = None,
        on_death: Callable[[], str | None] | None = None,
        submit_validator: Callable[[dict[str, Any]], object] | None = None,
        callbacks: Sequence[BaseCallback] | None = None,
        page_sources: Mapping[str, PageSource] | None = None,
        warm: WarmKernels | None = None,
    ) -> None:
        for name, function in (("submit_validator", submit_validator), ("on_death", on_death)):
            refuse_unless(function is None or callable(function), name, "a function or None", function)
        listed = callbacks is None or isinstance(callbacks, (list, tuple))
        refuse_unless(listed, "callbacks", "a list of DSPy callbacks or None", callbacks)
        known = warm is None or isinstance(warm, WarmKernels)  # pyright: ignore[reportUnnecessaryIsInstance]
        refuse_unless(known, "warm", "what a factory with `prewarm` passes on, or None", warm)
        self.tools = checked_tools(tools)
        self.output_fields = checked_fields(output_fields)
        self.page_sources = checked_page_sources(page_sources)
        self.submit_validator = submit_validator
        self.callbacks = list(callbacks or [])
        quota = Quota.current()
        if quota is not None:
            confinement = _shared(confinement)
        self._facade = FacadeGuard(RealDSPy(), Quota() if quota is None else quota)
        self._dispatcher = ToolDispatcher(_held_weakly(self.invoke_tool))
        self._session = KernelSession(
            dispatcher=self._dispatcher,
            python=python,
            limits=limits,
            confinement=confinement,
            restarts=restarts,
            checkpoint=checkpoint,
            runtime_dir=runtime_dir,
            checkpoint_file=checkpoint_file,
        )
        self._session.warm = warm
        self.checkpoint_label = ""  # of the next cell; see `restored`
        self.on_death = on_death
        self._ended = False
        self._finalizer = weakref.finalize(self, self._session.close)

    @classmethod
    def factory(cls, *, prewarm: int = 0, **options: Any) -> KernelInterpreterFactory[KernelInterpreter]:
        """A zero-argument callable that makes interpreters with these options.

        Args:
            prewarm: how many kernels are kept warm: started, in the background, before anybody wants one, and empty. An
                interpreter takes one at its start and in the place of a kernel that has died, and does not wait.

        Raises:
            ValueError, TypeError: an option is not one of the constructor's, or not what it must be.
        """
        whole = isinstance(prewarm, int) and not isinstance(prewarm, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
        refuse_unless(whole and prewarm >= 0, "prewarm", "a whole number of 0 or more", prewarm)
        made = cls(**options)  # says now what would otherwise be said in the middle of a run
        warm = WarmKernels(made._session.options, prewarm) if prewarm else None
        if warm is not None:
            warm.fill()
        return KernelInterpreterFactory(cls, options, prewarm, warm)

    @property
    def checkpoint_file(self) -> Path | None:
        """Where the last checkpoint is kept; may be set until the start."""
        return self._session.checkpoint_file

    @checkpoint_file.setter
    def checkpoint_file(self, file: str | os.PathLike[str] | None) -> None:
        self._session.checkpoint_file = None if file is None else Path(file)

    @property
    def connection_file(self) -> Path | None:
        """What `jupyter console --existing` takes, while a kernel is there."""
        return self._session.connection_file

    @property
    def report(self) -> ConfinementReport | None:
        """What the kernel runs under; None before the start."""
        return self._session.report

    @property
    def restored(self) -> Restored | None:
        """What the kernel began with from the checkpoint file; None before the start, or when there was no file.

        Its label is what `checkpoint_label` was at the cell that it is from.
        """
        return self._session.restored

    @property
    def death(self) -> Death | None:
        """How its kernel died the last time; None: it never did."""
        return self._session.death

    @with_callbacks
    def start(self) -> None:
        """Start the kernel, or return at once if it runs. Raises: CodeInterpreterError."""
        if self._ended:
            raise CodeInterpreterError("this KernelInterpreter was shut down; make a new one")
        try:
            self._session.start()
        except BridgeError as error:
            raise CodeInterpreterError(str(error)) from error

    @with_callbacks
    def execute(self, code: str, variables: Mapping[str, Any] | None = None) -> Any:
        """Run code in the kernel's namespace.

        Args:
            code: the source of one cell.
            variables: names to set first. A value is sent again only when it changed since it was last sent.

        Returns:
            `FinalOutput` with the submitted fields, the text of the output, or None when there was none.

        Raises:
            SyntaxError: the code is not valid Python; nothing ran.
            CodeExecutionError: the code failed, ran too long, or killed its kernel; the session goes on.
            CodeInterpreterError: the session is over, or the call itself was wrong.
        """
        variables = {} if variables is None else variables
        self._check_call(code, variables)
        session = self._session
        tools = self._facade.guarded(self.tools)
        host = CellHost(tools, self.submit_validator, self.on_death, self.checkpoint_label, dict(self.page_sources))
        cell = Cell(code, variables, self.output_fields, setup=_is_setup(variables))
        if session.busy:  # not to be waited for, in `start`
            raise CodeInterpreterError("a cell is already running in this session")
        if session.connection_file is None:
            self.start()  # through the decorated method, so that callbacks see the start
        try:
            outcome = session.run(cell, host)
        except (SessionBusy, NotSendable) as error:
            raise CodeInterpreterError(str(error)) from error
        except BridgeError as error:
            self._ended = True
            raise CodeInterpreterError(str(error)) from error
        return cell_answer(outcome, value_only=_FLEX_INPUTS in variables, originals=self._facade.has_originals)

    def _check_call(self, code: Any, variables: Mapping[str, Any]) -> None:
        if self._ended:
            raise CodeInterpreterError("this KernelInterpreter was shut down, or its session is over; make a new one")
        if not isinstance(code, str):
            raise CodeInterpreterError(f"code must be a str, not {type(code).__name__}")
        if not isinstance(variables, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CodeInterpreterError(f"variables must map names to values, not {type(variables).__name__}")
        try:
            check_names(list(self.tools), "tool names")
            check_names(list(variables), "variable names")
            self.output_fields = checked_fields(self.output_fields)
        except ValueError as error:
            raise CodeInterpreterError(str(error)) from error
        if clash := sorted(set(variables) & set(self.tools)):
            raise CodeInterpreterError(f"variables must not have the names of tools; both: {clash}")

    @with_callbacks
    def invoke_tool(self, tool_name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run one host tool, as a call from the kernel does. Raises: whatever the tool raises."""
        result = self._dispatcher.run(tool_name, args, kwargs)
        return cast("Any", result).toDict() if isinstance(result, Example) else result

    def bind(
        self, *, tools: Mapping[str, Callable[..., Any]], output_fields: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Replace all tools and output fields at once, for the next `execute`."""
        check_names(list(tools), "tool names")
        fields = checked_fields(output_fields)
        self.tools, self.output_fields = dict(tools), fields

    def interrupt(self) -> None:
        """Interrupt the running cell, from another thread; its state is kept. Without one: nothing."""
        self._session.interrupt()

    @with_callbacks
    def shutdown(self) -> None:
        """End the session: kill the kernel and all it started, remove its files. Idempotent and final."""
        self._ended = True
        self._session.close("this KernelInterpreter was shut down")
        self._finalizer.detach()

    def __enter__(self) -> KernelInterpreter:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def __call__(self, code: str, variables: Mapping[str, Any] | None = None) -> Any:
        """The same as `execute`."""
        return self.execute(code, variables)


def _held_weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an interpreter for the threads of its session, which must not keep the interpreter alive."""
    held = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        alive = held()
        if alive is None:
            raise CodeInterpreterError("the interpreter is gone")
        return alive(*args)

    return call


def _shared(confinement: str | Confinement | frozenset[str] | set[str]) -> str | Confinement:
    """The confinement of the kernel of a sub-agent, which shares the memory of the agent's with others of its kind."""
    if confinement == "off":
        return "off"
    asked = limits_asked(confinement)
    return replace(asked, memory_bytes=Quota.memory_share(asked.memory_bytes))


_FLEX_INPUTS = "__dspy_flex_inputs"  # dspy.Flex reads the last expression's value, whatever else was printed
_SETUP_PREFIXES = ("__dspy_host_token", "_raw_")  # dspy.RLM's own set-up cells: the facade, serialised inputs


def _is_setup(variables: Mapping[str, Any]) -> bool:
    return bool(variables) and all(name.startswith(_SETUP_PREFIXES) for name in variables)
