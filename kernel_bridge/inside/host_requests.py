"""What the host asks of its kernel: to run cells, and to restore a checkpoint. Before IPython is there, and after."""

# IPython carries no types: what comes from it is unknown to the checker.
# pyright: reportUnknownMemberType=false, reportOptionalMemberAccess=false

from __future__ import annotations

import builtins
import contextlib
import getpass
import os
import signal
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

from kernel_bridge.inside import DAMAGED, DAMAGED_STATUS
from kernel_bridge.inside.cell import HostCell
from kernel_bridge.inside.channel import HostChannel
from kernel_bridge.inside.checkpoint import Checkpoint, NamespaceKeeper
from kernel_bridge.inside.host_messages import Messages, Publisher, Replies
from kernel_bridge.inside.interrupts import Interrupts
from kernel_bridge.inside.late_ipython import LateIPython, can_see_ipython
from kernel_bridge.inside.namespace import Namespace
from kernel_bridge.inside.paged_list import read_pages_with
from kernel_bridge.inside.pickling import Pickling
from kernel_bridge.inside.plain_cells import PlainCells, without_empty_lines
from kernel_bridge.inside.plain_text import plain_text
from kernel_bridge.inside.process_state import ProcessState
from kernel_bridge.inside.refused_builtins import NoInput, nothing_typed
from kernel_bridge.inside.restored_names import told_names
from kernel_bridge.inside.streams import StandardStreams
from kernel_bridge.inside.stubs import Binding
from kernel_bridge.inside.tracebacks import name_cell
from kernel_bridge.inside.transcript import Transcript, sendable

if TYPE_CHECKING:
    from kernel_bridge.inside.launch_config import LaunchConfig

_INPUT = builtins.input  # while a cell runs, there is another one in this place
_MOST_SUSPICIONS = 1  # cells in a row that could not be run, for no fault of theirs


class HostRequests:
    """Runs what the host sends, and replies. One per kernel.

    Args:
        ipython: the rest of the kernel, for what needs it.
        real_stderr: a descriptor of the host's end.
    """

    def __init__(
        self,
        config: LaunchConfig,
        channel: HostChannel,
        interrupts: Interrupts,
        messages: Messages,
        replies: Replies,
        publisher: Publisher,
        ipython: LateIPython,
        real_stderr: int,
    ) -> None:
        self.cell: HostCell | None = None  # that runs now
        self.parent: dict[str, Any] = {"header": {}}  # the request that is served, or was last; a console's too
        self.ident: list[bytes] = []  # where it came from
        self.channel = channel
        self.interrupts = interrupts
        self.messages = messages
        self.replies = replies
        self.publisher = publisher
        self._ipython = ipython
        self._real_stderr = real_stderr
        self._longest_result = config.result_chars
        self._suspicions = 0
        transcript = Transcript(config.output_bytes, config.transcript_file)
        self.process = ProcessState(StandardStreams(transcript, interrupts, self._publish_text), interrupts)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=publisher.become_child)
        self._binding = Binding(channel, self.runs_cell)
        read_pages_with(self._binding.read_page)
        self.namespace = Namespace(ipython.main, self._binding)
        self.plain_cells = PlainCells(self.namespace.names)
        sys.stdin = self._nothing_typed = NoInput()
        self.checkpoint: Checkpoint | None = None
        self._keeper: NamespaceKeeper | None = None
        keeping = config.checkpoint
        if keeping is not None:
            pickling = Pickling(self.namespace.names, self._binding.stub_of)
            self.checkpoint = Checkpoint(
                keeping,
                self.namespace.names,
                pickling,
                last_words=real_stderr,
                end_if_forked=lambda: self.process.end_if_forked(None),
            )
            self._keeper = NamespaceKeeper(self.checkpoint, self.namespace.own_names, keeping.progress_file)

    def watch(self, shell: Any) -> None:
        """From now on there is IPython, whose shell the agent's code may change."""
        self.namespace.watch(shell)
        self.plain_cells.watch(shell)
        self.process.expect_builtins("display")
        shell.kernel.set_parent(self.ident, self.parent, channel="shell")

    def runs_cell(self) -> bool:
        """Whether a cell of the host runs now."""
        return self.cell is not None

    # -- what a cell finds in the place of input and output ------------------------------------------------------

    def raw_input(self, prompt: str = "") -> str:
        """`input` in a cell of the host."""
        if sys.stdin is self._nothing_typed:
            raise nothing_typed("input()")
        return _INPUT(prompt)  # from what the agent's code has put there

    def getpass(self, *_: Any, **__: Any) -> str:
        """`getpass.getpass` in a cell of the host."""
        raise nothing_typed("getpass()")

    def _show(self, value: Any) -> None:
        """Show the value of a last expression, while there is no IPython."""
        if value is None:
            return
        shows_itself = self.publisher.listened_to() or self._ipython.has_begun
        text = None if shows_itself else plain_text(value)
        if text is None:
            self._ipython.begin().shell.displayhook(value)
        elif self.cell is not None:
            self.cell.show_result(text)

    def _publish_text(self, stream: str, text: str) -> bool:
        if not self.publisher.listened_to():
            return False
        content = {"name": stream, "text": sendable(text)}
        self.publisher.publish(f"stream.{stream}", "stream", content, self.parent)
        return True

    # -- requests ------------------------------------------------------------------------------------------------

    async def serve(self, ident: list[bytes], parent: dict[str, Any]) -> None:
        """Run a cell of the host, or restore the checkpoint, and send the reply. Waits only where IPython does.

        A cell's `metadata["kernel_bridge"]` is `{"number", "variables", "setup", "again"}`: for the variables see
        `Namespace.take`; setup says that the cell is the host's own preparation, again that this is run for a
        successor. Its buffer 0 is the binding, see `stubs.py`. Its reply has `content["kernel_bridge"]`: head, tail,
        omitted, result, failure, submitted, taken, unkept.

        Before its first cell the host may ask once, with `metadata["kernel_bridge"] = {"restore": true}`, that the
        namespace of the checkpoint be restored; see `_restore`.
        """
        self.ident, self.parent = ident, parent
        self.publisher.publish("status", "status", {"execution_state": "busy"}, parent)
        self.listen_for_interrupts()
        try:
            self.keep()  # there may have been no time for it since the last reply
            spec = parent["metadata"]["kernel_bridge"]
            if "restore" in spec:
                self._restore(ident, parent)
            else:
                await self._serve_cell(spec, ident, parent)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.publisher.publish("status", "status", {"execution_state": "idle"}, parent)

    def listen_for_interrupts(self) -> None:
        """From now on until the end of the request an interrupt is noted, or raised where the agent's code runs."""
        self.interrupts.begin(0)
        signal.signal(signal.SIGINT, self.interrupts.handle)
        if hasattr(signal, "pthread_sigmask"):  # a cell before may have kept it out
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))

    def keep(self) -> None:
        """Make the checkpoint if it is due."""
        if self._keeper is not None:
            self._keeper.keep()

    async def _serve_cell(self, spec: dict[str, Any], ident: list[bytes], parent: dict[str, Any]) -> None:
        keeper = self._keeper
        try:
            bridge = await self._run_cell(spec, parent)
            bridge["unkept"] = {} if keeper is None or spec["setup"] else keeper.take_unkept()
            self._reply_to_cell(bridge, ident, parent)
        except BaseException as error:  # noqa: BLE001 - the host would wait for a reply
            self.give_up(error)
        if keeper is not None:
            keeper.expect(spec["number"])

    def _restore(self, ident: list[bytes], parent: dict[str, Any]) -> None:
        """Load what a predecessor has left. The reply has `content["kernel_bridge"]`: see `told_names`."""
        try:
            restored, lost = ([], {}) if self.checkpoint is None else self.checkpoint.restore()
            self.process.end_if_forked(None)
            self.namespace.restored.update(restored)
            self.replies.send({"status": "ok", "kernel_bridge": told_names(restored, lost)}, parent, ident)
        except BaseException as error:  # noqa: BLE001 - the host would wait for a reply
            self.give_up(error)

    async def _run_cell(self, spec: dict[str, Any], parent: dict[str, Any]) -> dict[str, Any]:
        cell = HostCell(spec["number"], self.process, self._longest_result)
        self.namespace.restore()
        setup = self.namespace.prepared(again=spec["again"]) if spec["setup"] else contextlib.nullcontext()
        taken = False
        with setup:
            self.cell = cell
            try:
                taken = self._take(cell, spec["variables"], parent["buffers"])
                if taken:
                    await self._run_code(cell, parent, is_agents=not spec["setup"])
                    self.process.end_if_forked(None)
                    self._suspicions = 0
            except BaseException as error:
                self.process.end_if_forked(error)
                cell.note_failure(type(error), error, error.__traceback__)
                self._suspicions += not isinstance(error, (KeyboardInterrupt, RecursionError, MemoryError))
                if self._suspicions > _MOST_SUSPICIONS:
                    raise
            finally:
                self.cell = None
                reply = cell.end(submitted=self._binding.submitted, taken=taken)
        return reply

    def _take(self, cell: HostCell, variables: list[Any], buffers: list[Any]) -> bool:
        """Bind tools and variables. False when a value could not be loaded here; that is the cell's failure."""
        views = [getattr(buffer, "buffer", buffer) for buffer in buffers]
        try:
            self.namespace.take(variables, views, lambda data: self.channel.codec.load(data, verify=False))
        except Exception:  # noqa: BLE001 - a pickled value runs foreign code while it loads
            cell.note_failure(*sys.exc_info())
            return False
        self._binding.update(bytes(views[0]), self.namespace.names)
        return True

    async def _run_code(self, cell: HostCell, parent: dict[str, Any], *, is_agents: bool) -> None:
        code = parent["content"]["code"]
        if self.publisher.listened_to():
            content = {"code": code, "execution_count": self._ipython.execution_count}
            self.publisher.publish("execute_input", "execute_input", content, parent)
        plain = without_empty_lines(code)
        name = name_cell(plain if plain.endswith("\n") else plain + "\n", cell.number)
        parts = self.plain_cells.compiled(plain, name)
        if not self._ipython.serves and (parts is None or (is_agents and can_see_ipython(parts))):
            await self._ipython.there()
            with warnings.catch_warnings():
                if parts is not None:  # it has been compiled, and has warned
                    warnings.simplefilter("ignore")
                parts = self.plain_cells.compiled(plain, name)
        if parts is None:
            await self._ipython.begin().kernel.run_host_cell(cell, code)
            return
        inputs = builtins.input, getpass.getpass
        builtins.input, getpass.getpass = self.raw_input, self.getpass
        try:
            with self._ipython.around_cell(self._show):
                for part in parts:
                    if await cell.run(part, self.namespace.names, awaits=False):
                        break
        finally:
            builtins.input, getpass.getpass = inputs

    def _reply_to_cell(self, bridge: dict[str, Any], ident: list[bytes], parent: dict[str, Any]) -> None:
        content: dict[str, Any] = {"status": "ok", "user_expressions": {}, "payload": []}
        if bridge["failure"] is not None:
            content["status"] = "error"
            content.update(ename=bridge["failure"]["name"], evalue="", traceback=[])
        content["execution_count"] = self._ipython.execution_count
        content["kernel_bridge"] = bridge
        self.replies.send(content, parent, ident)

    def give_up(self, error: BaseException) -> None:
        """End this process: the agent's code has damaged it so that it cannot go on; the host starts another."""
        try:
            line = f"{DAMAGED} {type(error).__name__}: {error!s:.300}\n"
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            os.write(self._real_stderr, (trace + line).encode("utf-8", "replace"))
        finally:  # without memory not even this can be written
            os._exit(DAMAGED_STATUS)
