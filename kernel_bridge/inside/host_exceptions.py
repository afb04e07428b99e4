"""The exceptions that a host tool's failure becomes in the kernel: the same class name and text as on the host."""

from __future__ import annotations

import builtins
import contextlib
from typing import Any

from kernel_bridge.wire import Unsendable

__all__ = ["HostError", "NotSendable", "host_exception"]


class HostError(RuntimeError):
    """Base of the exceptions that stand for a host tool's own, when Python has no exception of that name."""


class NotSendable(Unsendable):
    """An argument that cannot cross; it has the name that the host gives to the same refusal."""


NotSendable.__module__ = HostError.__module__ = "__main__"  # tracebacks show them without a module path


def host_exception(kind: str, message: str) -> BaseException:
    """An exception of the same class name and text as the one on the host.

    `except` by that name catches it: the class is Python's own when there is one, else a stand-in that becomes a
    builtin here: the agent reads the name in a traceback, and has no module to import it from.
    """
    found = getattr(builtins, kind, None)
    if isinstance(found, type) and issubclass(found, Exception):
        with contextlib.suppress(TypeError):  # some want more arguments than a text
            error = found(message)
            if str(error) == message:
                return error
    known = _stand_ins.get(kind)
    if known is None:
        known = _stand_ins[kind] = _stand_in(kind, found)
        if not hasattr(builtins, known.__name__):
            setattr(builtins, known.__name__, known)
    error = known(message)
    error.text = message
    return error


class _WithHostText(Exception):
    """Shows the host's text, where its other base would change it: `KeyError` quotes its argument."""

    text = ""

    def __str__(self) -> str:
        return self.text


def _stand_in(kind: str, found: Any) -> Any:
    name = kind if kind.isidentifier() else "HostError"
    for base in (found, *getattr(found, "__mro__", ())[1:-2], HostError):
        with contextlib.suppress(TypeError):
            if issubclass(base, Exception):
                made = type(name, (_WithHostText, base), {"__module__": "__main__"})
                made("a text")
                return made
    raise AssertionError("HostError takes a text")


_stand_ins: dict[str, Any] = {}  # one class per name, so that `except` by class works twice
