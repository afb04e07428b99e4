"""The runner of calls: a message of a kernel in, its answer out. Runs on whatever thread calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from kernel_bridge.errors import SubAgentError
from kernel_bridge.live.calls_in_flight import CallSize
from kernel_bridge.live.cell_clock import CellClock
from kernel_bridge.live.channel_state import ChannelState
from kernel_bridge.live.submission import Submission
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.text import error_text
from kernel_bridge.wire import Call, Codec, Raise, Return, Submit, Unsendable, WireError
from kernel_bridge.wire.frame import Frame

__all__ = ["Answer", "CallRunner", "ReceivedCall"]

_LONGEST_TEXT = 100_000  # characters of a tool's error
_LONGEST_NAME = 200  # characters of its class

Answer = tuple[Return | Raise, bytes]  # its head and its body


@dataclass(frozen=True, slots=True)
class ReceivedCall:
    """A call, or a submission, that was read and is not yet run."""

    head: Call | Submit
    body: Frame  # not yet decoded
    size: CallSize
    is_brief: bool  # it is expected to be
    has_begun: bool  # there was room for it


class CallRunner:
    """Runs the calls of one kernel. Thread-safe.

    Args:
        state: is told of what a tool raises that no kernel may have.
    """

    def __init__(
        self, dispatcher: ToolDispatcher, codec: Codec, clock: CellClock, submission: Submission, state: ChannelState
    ) -> None:
        self.dispatcher = dispatcher
        self._codec = codec
        self._clock = clock
        self._submission = submission
        self._state = state

    def run(self, call: ReceivedCall) -> Answer:
        """Run a call. Raises: WireError when its body is not what it must be."""
        head = call.head
        if isinstance(head, Submit):
            body = self._codec.load(call.body, verify=True, weighed=True)
            if not isinstance(body, dict):
                raise WireError("a submission is a dict")
            fields = cast("dict[str, Any]", body)
            return self._answer(head, lambda: self._submission.accept(fields), "SUBMIT", excused=True)
        if (why := self.dispatcher.too_long(head.name, len(call.body))) is not None:
            return Raise(head.id, SubAgentError.__name__, why), b""
        args, kwargs = _arguments(self._codec.load(call.body, verify=True, weighed=True))
        excused = not self.dispatcher.takes_own_time(head.name)
        name = head.name
        return self._answer(head, lambda: self.dispatcher.call(name, args, kwargs), f"{name}()", excused=excused)

    def _answer(self, head: Call | Submit, ask: Callable[[], Any], path: str, *, excused: bool) -> Answer:
        if excused:
            self._clock.begin_call()
        try:
            return Return(head.id), self._codec.dump(ask(), path, sources=self.dispatcher.page_sources)
        except Unsendable as error:
            return Raise(head.id, "NotSendable", f"the host's answer does not fit the border: {error}"), b""
        except Exception as error:  # noqa: BLE001 - foreign code: whatever a tool raises is the agent's to read
            return Raise(head.id, _name_of(error), error_text(error, _LONGEST_TEXT)), b""
        except BaseException as error:  # noqa: BLE001 - an interrupt or an exit belongs to the caller of the cell
            self._state.fail(error)
            return Raise(head.id, _name_of(error), "it ends this cell"), b""  # its text is for that caller alone
        finally:
            if excused:
                self._clock.end_call()


def _arguments(body: Any) -> tuple[list[Any], dict[str, Any]]:
    parts = cast("list[Any]", body) if isinstance(body, list) else []
    if len(parts) != 2 or not isinstance(parts[0], list) or not isinstance(parts[1], dict):
        raise WireError("a call's body is [positional arguments, keyword arguments]")
    return cast("list[Any]", parts[0]), cast("dict[str, Any]", parts[1])


def _name_of(error: BaseException) -> str:
    return type(error).__name__[:_LONGEST_NAME]
