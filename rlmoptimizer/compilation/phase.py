"""A phase of a compile, whose seconds are events."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

from rlmoptimizer.events import Emitter, PhaseFinished, PhaseStarted

__all__ = ["phase"]


@contextmanager
def phase(emitter: Emitter, name: Literal["baseline", "agent", "final_check", "test"]) -> Generator[None]:
    """Emit the begin of a phase, and with its end how long it took. One that raises has no end."""
    emitter.emit(PhaseStarted(name))
    began = time.monotonic()
    yield
    emitter.emit(PhaseFinished(name, time.monotonic() - began))
