"""A tier: one way to confine a kernel, from how it is started to what it is given and why that may be missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import LaunchPlan
from kernel_bridge.files.layout import Layout

__all__ = ["NEEDS_FENCE", "NEEDS_NAMESPACES", "Tier"]

NEEDS_NAMESPACES = "needs namespaces, tier N"
NEEDS_FENCE = "needs tier N or L"


def _nothing() -> None:
    return None


def _unchanged(reason: str) -> str:
    return reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One way to confine a kernel."""

    letter: str  # its name in reports
    mechanisms: str  # what confines a kernel
    how: str  # the same in a word, of a session
    platform: str | None  # the `sys.platform` on which it is tried; None: it needs no trial, anywhere
    plan: Callable[[Confinement, Layout, str], LaunchPlan]  # for the kernel of this Python; raises OSError
    guarantees: Callable[[], Mapping[str, str]]  # guarantee -> the mechanism that gives it here
    missing: Mapping[str, str]  # guarantee -> why this tier does not give it
    why_unavailable: Callable[[], str | None] = _nothing  # why a trial would be in vain; raises TransientError
    explain_refusal: Callable[[str], str] = _unchanged  # the reason of a failed trial, with what would mend it
    note: str | None = None  # what to know where this tier is in use
