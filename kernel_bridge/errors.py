"""The error families of the bridge. Knows nothing of sockets, processes or DSPy.

Three fates: the agent's code can repair it (it never becomes a `BridgeError` on the host: it crosses as a failure
of the cell), the session is over (`SessionLost`), or the caller asked for something impossible (the rest). Of what a
kernel wrote, messages hold only what a terminal may be shown; attributes hold it as it came.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernel_bridge.text import printable

__all__ = [
    "BridgeError",
    "ConfinementUnavailable",
    "KernelDied",
    "KernelUnresponsive",
    "NotSendable",
    "ProtocolViolation",
    "Refusal",
    "SessionBusy",
    "SessionClosed",
    "SessionLost",
    "StartupFailed",
    "SubAgentError",
]


class BridgeError(Exception):
    """Base of everything this package raises on purpose."""


class NotSendable(BridgeError, TypeError):
    """A value cannot cross the process border; nothing was sent.

    Attributes:
        path: where the value sits, such as `examples[3].inputs.image`.
        type: the name of its type.
        reason: why it cannot cross.
    """

    def __init__(self, path: str, type: str, reason: str) -> None:
        self.path = path
        self.type = type
        self.reason = reason
        super().__init__(printable(f"{path or 'the value'} ({type}) cannot be sent: {reason}"))

    def __reduce__(self) -> tuple[object, ...]:
        return (NotSendable, (self.path, self.type, self.reason))


class SessionBusy(BridgeError):
    """A cell is already running in this session; one session runs one cell at a time."""


class SessionClosed(BridgeError):
    """The session was closed; make a new one."""


class Refusal(Exception):
    """Mixed into an exception of a host's tool or meter whose text is written for agent code, and may reach it."""


class SubAgentError(BridgeError, ValueError):
    """A sub-agent that agent code asked for cannot be had, or could not answer. Read by the agent, who can mend it."""


class ConfinementUnavailable(BridgeError):
    """The guarantees asked for cannot all be given on this machine, so no kernel was started.

    Attributes:
        missing: guarantee -> why it cannot be given here.
    """

    def __init__(self, missing: Mapping[str, str]) -> None:
        self.missing = dict(missing)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
        super().__init__(
            f"the kernel was not started, because these guarantees cannot be given here: {reasons}. "
            'Ask for fewer guarantees, or pass confinement="auto" to run with what the machine gives.'
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (ConfinementUnavailable, (self.missing,))


class SessionLost(BridgeError):
    """The session is over and its state is gone.

    Attributes:
        reason: one sentence about what happened.
        exit_code: the kernel's exit status; negative is a signal number; None when it never exited by itself.
        stderr_tail: the last bytes the kernel wrote to its real stderr, as text.
    """

    def __init__(self, reason: str, exit_code: int | None = None, stderr_tail: str = "") -> None:
        self.reason = reason
        self.exit_code = exit_code
        self.stderr_tail = stderr_tail
        tail = f"\nThe kernel's last words on stderr:\n{stderr_tail}" if stderr_tail.strip() else ""
        super().__init__(printable(f"{reason}{tail}"))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason, self.exit_code, self.stderr_tail))


class StartupFailed(SessionLost):
    """The kernel did not come up."""


class KernelDied(SessionLost):
    """The kernel's process ended and the session may not start another."""


class KernelUnresponsive(SessionLost):
    """The kernel's process lived but did not answer: it was killed, and the session may not start another."""


class ProtocolViolation(SessionLost):
    """The kernel sent something that is not one of the agreed messages."""
