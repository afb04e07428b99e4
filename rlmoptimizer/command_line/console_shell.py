"""A Jupyter console for the kernel of an agent that nobody trusts, and that may be at work.

Nothing is asked of a kernel that runs a cell of the agent: what is typed is looked at here, so a person can always type
`pause()`. All that comes from the kernel is made printable, and of what a kernel may ask of a console only pages of
text and the end are heeded: no images, no input, no text put into the prompt.
"""

# Jupyter and IPython ship no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false, reportMissingTypeStubs=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import re
import time
from queue import Empty
from typing import Any, Final, cast

from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.channels import ZMQSocketChannel
from jupyter_client.consoleapp import JupyterConsoleApp
from jupyter_console.app import ZMQTerminalIPythonApp
from jupyter_console.completer import ZMQCompleter
from jupyter_console.ptshell import ZMQTerminalInteractiveShell
from traitlets import Any as AnyTrait
from traitlets import Type

from kernel_bridge.text import printable, printable_line
from rlmoptimizer.command_line.agent_kernel import AgentKernel
from rlmoptimizer.command_line.spans import plain, write_spans
from rlmoptimizer.command_line.typed_requests import answer, is_request
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.outcome.recorded_setup import unit_limit
from rlmoptimizer.outcome.state import state_of
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["open_console"]

_TEXT_CHARS: Final = 100_000  # of one text that the kernel sends
_COLOUR: Final = re.compile(r"(\x1b\[[0-9;]{0,20}m)")
_RESET: Final = "\x1b[0m"
_PAYLOADS: Final = ("page", "ask_exit")
_LEAVING: Final = ("exit", "quit", "exit()", "quit()")
_SLOW_COMPLETION: Final = 1.0  # seconds
_TOOLS: Final = (
    "Variables and functions here are the agent's, and yours are there for it. Its tools work and cost what they cost "
    "it: evaluate_program and race_prompts one unit for each example evaluated, try_program one, llm_query one for "
    "each prompt; run_data, compare_runs, optimization_status and update_prompt nothing."
)
_REQUESTS: Final = (
    'For the optimization itself: pause(), unpause(), note("words for the agent"). After pause() the agent waits when '
    "its turn has ended, and no cell of yours waits for one of its own."
)
_LEAVE: Final = "Ctrl-D or exit leaves, and the optimization goes on."


def open_console(store: StoreReader, kernel: AgentKernel) -> None:
    """Talk with the person at this terminal until they leave. `store` stays open for as long."""
    run = OptimizationConsole(store, kernel)
    write_spans(map(plain, run.banner()))
    ConsoleApp.launch_instance(["--existing", str(kernel.connection_file), "--no-confirm-exit"], run=run)
    if Requests(store.path).pausing:
        directory = printable_line(str(store.path.parent))
        print(f"the agent is still to wait; this lets it go on: rlmoptimizer unpause {directory}")


class OptimizationConsole:
    """What the console knows of the optimization, and does for it."""

    def __init__(self, store: StoreReader, kernel: AgentKernel) -> None:
        self._store = store
        self._kernel = kernel

    def banner(self) -> list[str]:
        """The lines that a person reads first."""
        setup, turns = self._store.setup(), len(self._store.iterations())
        limit = "" if setup is None else f" of {unit_limit(setup)}"
        return [
            f"The kernel of the agent that optimizes in {printable_line(str(self._store.path))}",
            f"{state_of(self._store)}, turn {turns + 1}, {self._store.spent()}{limit} units spent",
            "",
            _TOOLS,
            _REQUESTS,
            _LEAVE,
        ]

    def answer(self, code: str) -> str | None:
        """What is said to a cell that does not go to the kernel; None: it goes there."""
        if is_request(code):
            return answer(code, self._store)
        try:
            newest = AgentKernel.of(self._store)
        except InvalidSetup as error:
            return f"not run: {error}"
        if newest != self._kernel:
            return "not run: this kernel has ended, and the agent has another one; leave and open the console again"
        if self.is_agent_at_work():
            return (
                "not run: a cell of the agent runs, and this one would wait for its end. pause() lets the agent wait "
                "after this turn; then it runs at once"
            )
        return None

    def is_agent_at_work(self) -> bool:
        """Whether a cell of the agent runs in the kernel."""
        return self._store.unfinished_iteration() is not None and state_of(self._store) == "running"


def _printable(value: Any) -> Any:
    """What a message holds, with texts that can be shown; colours stay."""
    if isinstance(value, str):
        parts = _COLOUR.split(value[:_TEXT_CHARS])
        shown = "".join(part if place % 2 else printable(part, None) for place, part in enumerate(parts))
        return f"{shown}{_RESET}" if parts[1:] else shown  # it may not colour, or hide, what comes after it
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_printable(item) for item in cast("list[Any]", value)]
    return value


def printable_content(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a message from the kernel, of which only what a person can be shown is left."""
    shown: dict[str, Any] = _printable(content)
    if isinstance(data := shown.get("data"), dict):
        shown["data"] = {key: text for key, text in data.items() if key == "text/plain" and isinstance(text, str)}
    if isinstance(payload := shown.get("payload"), list):
        shown["payload"] = [one for one in payload if isinstance(one, dict) and one.get("source") in _PAYLOADS]
    return shown


class ShownChannel(ZMQSocketChannel):
    """A channel whose messages are safe to show."""

    def get_msg(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        message: dict[str, Any] = super().get_msg(*args, **kwargs)
        return {**message, "content": printable_content(message["content"])}


class ConsoleClient(BlockingKernelClient):
    shell_channel_class = Type(ShownChannel)
    iopub_channel_class = Type(ShownChannel)


def completions(content: dict[str, Any], cursor_pos: int) -> dict[str, Any]:
    """What a kernel's answer offers that may be put into the line of the person: single words or lines, no more."""
    start, found = content.get("cursor_start"), content.get("matches")
    if not isinstance(start, int) or not 0 <= start <= cursor_pos or not isinstance(found, list):
        start, found = cursor_pos, []
    matches = [one for one in cast("list[Any]", found) if isinstance(one, str) and "\n" not in one]
    return {"matches": matches, "cursor_start": start, "cursor_end": cursor_pos, "metadata": {}, "status": "ok"}


class PatientCompleter(ZMQCompleter):
    """Asks the kernel only while it can answer."""

    run: OptimizationConsole

    def complete_request(self, code: str, cursor_pos: int) -> dict[str, Any]:
        self.timeout = _SLOW_COMPLETION
        if not self.run.is_agent_at_work():
            try:
                return completions(super().complete_request(code, cursor_pos), cursor_pos)
            except (Empty, KeyError):  # no answer, or none to any question
                pass
        return completions({}, cursor_pos)


class _NoHistory:
    """The cells of the agent are no history of the person's, and a kernel at work could not give them."""

    def get_tail(self, *_: Any, **__: Any) -> list[Any]:
        return []


class ConsoleShell(ZMQTerminalInteractiveShell):
    run = AnyTrait()

    def init_history(self) -> None:
        self.history_manager = _NoHistory()

    def init_completer(self) -> None:
        self.Completer = PatientCompleter(self, self.client, config=self.config)
        self.Completer.run = self.run

    def init_kernel_info(self) -> None:
        """The kernel is Python; one at work could not say it."""
        cast("ConsoleClient", self.client).hb_channel.unpause()
        self.kernel_info = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}

    def show_banner(self) -> None:
        """It stands there already."""

    def check_complete(self, code: str) -> tuple[bool, str]:
        """Whether more lines have to come, and how the next is indented."""
        status, indent = TransformerManager().check_complete(code)
        return status == "incomplete", " " * (indent or 0)

    def handle_input_request(self, msg_id: str, timeout: float = 0.1) -> None:
        """A kernel may not ask a person for anything."""
        time.sleep(timeout)
        raise Empty

    def run_cell(self, cell: str, store_history: bool = True) -> None:
        if cell.strip() in _LEAVING:
            self.keepkernel = True
            self.ask_exit()
            return
        said = self.run.answer(cell) if cell.strip() else None
        if said is not None:
            print(printable(said))
            return
        try:
            super().run_cell(cell, store_history)
        except KeyboardInterrupt:
            print("\nnot waited for any longer; the cell goes on in the kernel")


class ConsoleApp(ZMQTerminalIPythonApp):
    run = AnyTrait()
    kernel_client_class = ConsoleClient

    def init_shell(self) -> None:
        import signal

        JupyterConsoleApp.initialize(self)
        # Nobody would answer a cell that asks for input, and the agent would wait behind it.
        cast("ConsoleClient", self.kernel_client).allow_stdin = False
        signal.signal(signal.SIGINT, self.handle_sigint)
        self.shell = ConsoleShell.instance(
            parent=self, manager=None, client=self.kernel_client, confirm_exit=False, run=self.run
        )
        self.shell.own_kernel = False

    def handle_sigint(self, *_: Any) -> None:
        raise KeyboardInterrupt
