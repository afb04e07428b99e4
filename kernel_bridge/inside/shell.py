"""The kernel's shell: IPython's, but what a host's cell shows and raises goes to the host."""

# IPython and ipykernel carry no types: what comes from them is unknown to the checker, and only that is let through.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportUnknownParameterType=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportMissingSuperCall=false

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import Any

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.zmqshell import ZMQDisplayPublisher, ZMQInteractiveShell
from IPython.core.formatters import DisplayFormatter, PlainTextFormatter
from IPython.core.interactiveshell import ExecutionResult
from traitlets import Type

from kernel_bridge.inside.plain_text import LARGEST
from kernel_bridge.inside.transcript import sendable

_STOCK_FORMATTER: Any = PlainTextFormatter()  # its dictionaries are typed by names alone, and have classes too
_INTEGER_PRINTER = _STOCK_FORMATTER.type_printers[int]


class BridgeDisplayHook(ZMQShellDisplayHook):
    """Adds the last expression's text to the transcript of a host's cell."""

    def __call__(self, result: Any = None) -> None:
        kernel = self.shell.kernel
        if kernel.cell is None or kernel.iopub_socket.listened_to():
            super().__call__(result)
            return
        self.check_for_underscore()
        if result is not None:
            self.fill_exec_result(result)
            if type(result) is int and self._shows_integers_plainly(result):
                result = repr(result)
            elif not isinstance(result, str):
                shown, _ = self.shell.display_formatter.format(result, include=("text/plain",))
                result = shown.get("text/plain")
            kernel.cell.show_result(result)

    def _shows_integers_plainly(self, number: int) -> bool:
        """Whether the text of this one is its repr: it is small, and the agent's code has not said otherwise."""
        display: Any = self.shell.display_formatter
        if not -LARGEST < number < LARGEST or display.__class__ is not DisplayFormatter or "format" in vars(display):
            return False
        plain: Any = display.formatters.get("text/plain")
        if plain.__class__ is not PlainTextFormatter or id(number) in plain.singleton_printers:
            return False
        if not plain.enabled or plain.type_printers.get(int) is not _INTEGER_PRINTER:
            return False
        asked_before = (display.ipython_display_formatter, display.mimebundle_formatter)
        return not any(
            int in asked.type_printers or object in asked.type_printers or asked.deferred_printers
            for asked in asked_before
        )

    def compute_format_data(self, result: Any) -> Any:
        if isinstance(result, str) and self.shell.kernel.cell is not None:
            return _sendable_data({"text/plain": result}), {}  # a string is its own text, as in DSPy's interpreters
        data, metadata = super().compute_format_data(result)
        return _sendable_data(data), metadata

    def finish_displayhook(self) -> None:
        kernel = self.shell.kernel
        if kernel.cell is not None and self.msg is not None:
            kernel.cell.show_result(self.msg["content"]["data"].get("text/plain"))
            if not kernel.iopub_socket.listened_to():
                self.msg = None
                return
        super().finish_displayhook()


class BridgeDisplayPublisher(ZMQDisplayPublisher):
    """Adds the text of `display(...)` to the transcript of a host's cell."""

    def publish(self, data: Any, *args: Any, **kwargs: Any) -> None:
        kernel = self.shell.kernel
        text = data.get("text/plain") if isinstance(data, dict) else None
        if kernel.cell is not None and isinstance(text, str):
            kernel.cell.show(text + "\n")
        if kernel.iopub_socket.listened_to():
            super().publish(_sendable_data(data), *args, **kwargs)


def _sendable_data(data: Any) -> Any:
    """The representations of a result as texts that a message can hold."""
    if not isinstance(data, dict):
        return data
    return {kind: sendable(text) if isinstance(text, str) else text for kind, text in data.items()}


class BridgeShell(ZMQInteractiveShell):
    """Has a host's cell run its code itself, and runs a console's the usual way."""

    displayhook_class = Type(BridgeDisplayHook)
    display_pub_class = Type(BridgeDisplayPublisher)
    is_started = False
    _last_traceback: list[str] = []  # noqa: RUF012 - read by ipykernel before the first stock traceback sets it

    def init_io(self) -> None:
        return None

    def init_environment(self) -> None:
        return None  # no FORCE_COLOR: what subprocesses print is read by a model

    def init_hooks(self) -> None:
        # Ipykernel's own adds this pager, with a module that is slow to import.
        super(ZMQInteractiveShell, self).init_hooks()
        self.set_hook("show_in_pager", lambda _, *args, **kwargs: self.payloadpage_page(*args, **kwargs), 99)

    def init_completer(self) -> None:
        """At its first use: a person may never attach."""

    def __getattr__(self, name: str) -> Any:
        if name != "Completer":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        super().init_completer()  # sets it
        return self.__dict__[name]

    @property
    def configurables(self) -> list[Any]:
        """What can be configured by `%config`, the completer too."""
        if self.is_started:
            self.Completer  # noqa: B018 - makes it
        return self._configurables

    @configurables.setter
    def configurables(self, found: list[Any]) -> None:
        self._configurables = found

    def _tee(self, channel: str) -> Any:
        return contextlib.nullcontext()  # stock IPython keeps all that was ever printed, in memory, for its history

    @contextlib.contextmanager
    def around_plain_cell(self) -> Generator[None]:
        """A block in which a host's cell of plain Python runs."""
        self.last_execution_result = self.displayhook.exec_result = ExecutionResult(None)  # its `result` is shown
        try:
            self.events.trigger("pre_execute")
            with self.builtin_trap, self.display_trap:
                yield
            self.events.trigger("post_execute")  # the cell may have made a hook, as matplotlib does
        finally:
            self.displayhook.exec_result = None
            self.forget_results()

    def forget_results(self) -> None:
        """Forget what IPython would keep of a cell for its history."""
        for name in ("outputs", "exceptions"):
            getattr(self.history_manager, name, {}).clear()

    async def run_code(self, code_obj: Any, result: Any = None, *, async_: bool = False) -> bool:
        """Run compiled code. Returns whether it failed, as IPython wants it."""
        cell = self.kernel.cell
        if cell is None:
            return await super().run_code(code_obj, result, async_=async_)
        failed = await cell.run(code_obj, self.user_ns, awaits=async_)
        if failed and result is not None:
            result.error_in_exec = RuntimeError()  # what ipykernel sees, which asks it for its text
        return failed

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        if self.kernel.cell is None:
            super().showtraceback(exc_tuple, *args, **kwargs)
            return
        self.kernel.cell.note_failure(*(exc_tuple or sys.exc_info()))

    def showsyntaxerror(self, filename: Any = None, *args: Any, **kwargs: Any) -> None:
        if self.kernel.cell is None:
            super().showsyntaxerror(filename, *args, **kwargs)
            return
        self.kernel.cell.note_failure(*sys.exc_info())

    def payloadpage_page(self, strg: Any, start: int = 0, screen_lines: int = 0, pager_cmd: Any = None) -> None:
        if self.kernel.cell is None:
            super().payloadpage_page(strg, start, screen_lines, pager_cmd)
            return
        text = strg.get("text/plain") if isinstance(strg, dict) else strg
        print(str(text).rstrip("\n"))  # what `name?` shows; there is no pager on the other side

    # A pseudo-terminal, which IPython's own way makes, would only add carriage returns and colours.
    system = ZMQInteractiveShell.system_raw

    def ask_exit(self) -> None:
        if self.kernel.cell is None:
            self.keepkernel_on_exit = True  # a person leaves the console, and the agent's kernel stays
            super().ask_exit()
            return
        raise RuntimeError("exit() does not end this session; call SUBMIT(...) when the work is done")
