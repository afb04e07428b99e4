"""A confined Jupyter kernel that can call tools of its host.

    import dspy
    from kernel_bridge import KernelInterpreter

    rlm = dspy.RLM("question -> answer", interpreter_factory=KernelInterpreter)

Importing this package imports neither dspy nor zmq; the names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernel_bridge.cells import Cell, CellHost, CellOutcome, Death, Pickled, RemoteFailure, Restored
    from kernel_bridge.confine import GUARANTEES, Confinement, ConfinementReport, Probe, probe
    from kernel_bridge.errors import (
        BridgeError,
        ConfinementUnavailable,
        KernelDied,
        KernelUnresponsive,
        NotSendable,
        ProtocolViolation,
        SessionBusy,
        SessionClosed,
        SessionLost,
        StartupFailed,
        SubAgentError,
    )
    from kernel_bridge.files.live_sessions import LiveSession, live_sessions
    from kernel_bridge.interpreter import KernelInterpreter
    from kernel_bridge.interpreter_factory import KernelInterpreterFactory
    from kernel_bridge.options import Limits, SessionOptions
    from kernel_bridge.session import KernelSession
    from kernel_bridge.wire import PagedList, PageSource

__all__ = [
    "GUARANTEES",
    "BridgeError",
    "Cell",
    "CellHost",
    "CellOutcome",
    "Confinement",
    "ConfinementReport",
    "ConfinementUnavailable",
    "Death",
    "KernelDied",
    "KernelInterpreter",
    "KernelInterpreterFactory",
    "KernelSession",
    "KernelUnresponsive",
    "Limits",
    "LiveSession",
    "NotSendable",
    "PageSource",
    "PagedList",
    "Pickled",
    "Probe",
    "ProtocolViolation",
    "RemoteFailure",
    "Restored",
    "SessionBusy",
    "SessionClosed",
    "SessionLost",
    "SessionOptions",
    "StartupFailed",
    "SubAgentError",
    "live_sessions",
    "probe",
]

_HOMES = {
    "cells": ("Cell", "CellHost", "CellOutcome", "Death", "Pickled", "RemoteFailure", "Restored"),
    "confine": ("GUARANTEES", "Confinement", "ConfinementReport", "Probe", "probe"),
    "files.live_sessions": ("LiveSession", "live_sessions"),
    "errors": (
        "BridgeError",
        "ConfinementUnavailable",
        "KernelDied",
        "KernelUnresponsive",
        "NotSendable",
        "ProtocolViolation",
        "SessionBusy",
        "SessionClosed",
        "SessionLost",
        "StartupFailed",
        "SubAgentError",
    ),
    "interpreter": ("KernelInterpreter",),
    "interpreter_factory": ("KernelInterpreterFactory",),
    "options": ("Limits", "SessionOptions"),
    "session": ("KernelSession",),
    "wire": ("PageSource", "PagedList"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"kernel_bridge.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
