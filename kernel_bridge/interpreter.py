"""KernelInterpreter: DSPy's CodeInterpreter protocol over a session. The only file here that imports dspy."""

from __future__ import annotations

import contextvars
import logging
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER
from dspy.adapters.types.tool import Tool
from dspy.dsp.utils.settings import settings
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError, FinalOutput
from dspy.primitives.example import Example
from dspy.signatures import field as dspy_field
from dspy.signatures.signature import Signature
from dspy.utils import callback as dspy_callbacks
from dspy.utils.callback import BaseCallback
from dspy.utils.constants import IS_TYPE_UNDEFINED
from dspy.utils.exceptions import AdapterParseError, LMError

from kernel_bridge.agent_text.instructions import execution_instructions
from kernel_bridge.agent_text.outcomes import death_text, failure_text, output_text
from kernel_bridge.cells import Cell, CellHost, CellOutcome, Death, Restored
from kernel_bridge.confine import Confinement, ConfinementReport, limits_asked
from kernel_bridge.errors import BridgeError, NotSendable, Refusal, SessionBusy, SubAgentError
from kernel_bridge.interpreter_factory import KernelInterpreterFactory
from kernel_bridge.live.bindings import check_names, checked_fields, checked_page_sources, checked_tools
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.live.warm_kernels import WarmKernels
from kernel_bridge.options import Limits, refuse_unless
from kernel_bridge.session import KernelSession
from kernel_bridge.sub_agents.facade_guard import FacadeGuard
from kernel_bridge.sub_agents.quota import Quota
from kernel_bridge.sub_agents.signature_text import SignatureText
from kernel_bridge.text import error_text, traceback_shown
from kernel_bridge.wire import PagedList, PageSource

__all__ = ["KernelInterpreter", "KernelInterpreterFactory", "OnlyText", "only_text", "only_text_in"]

logger = logging.getLogger(__name__)

_Method = TypeVar("_Method", bound=Callable[..., Any])


def with_callbacks(method: _Method) -> _Method:
    """DSPy's decorator of the same name, with a type."""
    return cast("_Method", cast("Any", dspy_callbacks).with_callbacks(method))


_input_field = cast("Callable[..., Any]", cast("Any", dspy_field).InputField)
_output_field = cast("Callable[..., Any]", cast("Any", dspy_field).OutputField)


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
        self.tools = checked_tools(tools)
        self.output_fields = checked_fields(output_fields)
        self.page_sources = checked_page_sources(page_sources)
        self.submit_validator = submit_validator
        self.callbacks = list(callbacks or [])
        quota = Quota.current()
        if quota is not None:
            confinement = _shared(confinement)
        self._facade = FacadeGuard(_DSPy(), Quota() if quota is None else quota)
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
        return _answer(outcome, value_only=_FLEX_INPUTS in variables, originals=self._facade.has_originals)

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


class _DSPy:
    """What the facade's guard needs of DSPy."""

    # What pydantic and DSPy have on every signature.
    taken_names = frozenset(
        name for part in (Signature, type(Signature)) for name in dir(part) if not name.startswith("_")
    )

    def signature(self, read: SignatureText, instructions: str | None) -> Any:
        # Inputs count as untyped, so that DSPy does not log the values that it finds to be of another type.
        untyped = {IS_TYPE_UNDEFINED: True}
        fields: dict[str, Any] = {made.name: (made.annotation, _input_field(**untyped)) for made in read.inputs}
        fields.update({made.name: (made.annotation, _output_field()) for made in read.outputs})
        return cast("Any", Signature)(fields, instructions)

    def tool(self, tool: Any) -> Any:
        made: Any = tool if isinstance(tool, Tool) else Tool(tool)
        parts = {name: getattr(made, name) for name in ("name", "desc", "args", "arg_types", "arg_desc")}
        return cast("Any", _SubAgentTool)(made.func, **parts)

    def clean(self, text: str) -> str:
        return only_text(text).encode("utf-8", "replace").decode("utf-8")

    def around_call(self) -> AbstractContextManager[Any]:
        now = cast("Any", settings)
        # The trace that DSPy keeps by default holds the last 10,000 predictors with their inputs.
        kept = contextvars.Context().run(getattr, now, "trace")
        untraced = {"trace": None} if now.trace is kept else {}
        return now.context(callbacks=[*(now.callbacks or []), OnlyText()], **untraced)

    def refusal(self, error: BaseException, kind: str) -> Exception:
        return _refusal(error, kind)


class _SubAgentTool(Tool):
    """A tool whose errors, also those of its arguments, are a text, and whose texts are texts only.

    DSPy would tell a sub-agent's LM the traceback, with paths and source lines of the host.
    """

    def __call__(self, /, **kwargs: Any) -> Any:  # a model's argument may be called anything
        try:
            return only_text_in(cast("Any", super()).__call__(**kwargs))
        except Exception as error:  # noqa: BLE001 - foreign code
            return _failure_for_lm(error)

    async def acall(self, /, **kwargs: Any) -> Any:
        try:
            return only_text_in(await cast("Any", super()).acall(**kwargs))
        except Exception as error:  # noqa: BLE001 - foreign code
            return _failure_for_lm(error)


_LM_FAILED = re.compile(r"\[dspy bridge lm-error #\d+\]")  # dspy.Flex raises the LM's own error when it reads this
_NO_MORE_CALLS = re.compile(r"LLM call limit exceeded: \d+ \+ \d+ > \d+\.")
_NO_MORE_PREDICTIONS = re.compile(r"Sandboxed forward exceeded its predictor-call budget \(\d+\)\.")
_ANSWER_CHARS = 2000


def _refusal(error: BaseException, kind: str) -> Exception:
    """What a kernel is told of an error of a sub-agent: nothing of the host's, whatever is in the error's text."""
    if isinstance(error, (SubAgentError, Refusal)):
        return error
    if isinstance(error, AdapterParseError):
        answer = error.lm_response
        shown = answer[:_ANSWER_CHARS] if isinstance(answer, str) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
        return SubAgentError(f"the LM's answer to dspy.{kind} could not be read as its output fields. It was: {shown}")
    if isinstance(error, CodeInterpreterError) and isinstance(error.__cause__, LMError):
        tag = _LM_FAILED.match(str(error))
        mark = "" if tag is None else f"{tag.group()} "
        return SubAgentError(f"{mark}the LM of dspy.{kind} failed: {_class(error.__cause__)}")
    for known in (_NO_MORE_CALLS, _NO_MORE_PREDICTIONS):
        if (found := known.match(str(error))) is not None:
            return SubAgentError(found.group())
    logger.info("A sub-agent (dspy.%s) failed:\n%s", kind, traceback_shown(error))
    return SubAgentError(f"dspy.{kind} failed on the host: {_class(error)}")


def _class(error: BaseException) -> str:
    """The name of an exception's class, where that is Python's or DSPy's own."""
    kind = type(error)
    return kind.__name__ if kind.__module__.partition(".")[0] in ("builtins", "dspy", "pydantic_core") else "Exception"


def _failure_for_lm(error: Exception) -> str:
    return only_text(f"Failed: {type(error).__name__}: {error_text(error, _ANSWER_CHARS)}")


def only_text(text: str) -> str:
    """`text` without the marks between which DSPy's adapters read attachments, such as the URL of an image."""
    return text.replace(CUSTOM_TYPE_START_IDENTIFIER, _NO_MARK)


def only_text_in(value: Any) -> Any:
    """A plain value, the same for all its texts; a `PagedList` whole, for who gets it cannot read more."""
    if isinstance(value, str):
        return only_text(value)
    if isinstance(value, PagedList):
        return only_text_in(value.whole())
    if isinstance(value, list):
        return [only_text_in(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {only_text_in(key): only_text_in(item) for key, item in items}
    return value


class OnlyText(BaseCallback):
    """Keeps what an LM has answered from being an attachment of a later prompt."""

    def on_adapter_parse_end(
        self, call_id: str, outputs: dict[str, Any] | None, exception: BaseException | None = None
    ) -> None:
        """Clean the fields in place, before the program gets them."""
        if isinstance(outputs, dict):
            for name, value in outputs.items():
                outputs[name] = only_text_in(value)


_NO_MARK = CUSTOM_TYPE_START_IDENTIFIER.replace("<<", "< <")


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


def _answer(outcome: CellOutcome, *, value_only: bool, originals: bool) -> Any:
    """What DSPy gets of a cell. It puts all of it into prompts, in which it would find attachments.

    Args:
        originals: the caller has handed in attachments of its own, which a value may hold again.
    """
    failure = outcome.failure
    if outcome.submitted is not None:
        return FinalOutput({name: only_text_in(value) for name, value in outcome.submitted.items()})
    if outcome.death is not None:
        raise CodeExecutionError(only_text(death_text(outcome, outcome.death)))
    if failure is not None and failure.compiling:
        raise SyntaxError(only_text(failure.traceback or failure.message))
    if failure is not None:
        raise CodeExecutionError(only_text(failure_text(outcome, failure)))
    text = outcome.result if value_only else output_text(outcome)
    return text if text is None or (value_only and originals) else only_text(text)
