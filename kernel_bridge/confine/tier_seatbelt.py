"""Tier S, macOS: the system's sandbox-exec with a profile, and resource limits.

It has never been run: this project's checks have no Mac. The trial run of `probe()` decides whether it is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import LaunchPlan
from kernel_bridge.confine.tier import Tier
from kernel_bridge.confine.tier_plain import PLAIN, plain_guarantees
from kernel_bridge.files.layout import Layout

__all__ = ["SEATBELT"]


def _why_unavailable() -> str | None:
    return None if shutil.which("sandbox-exec") else "sandbox-exec is not there"


def _guarantees() -> Mapping[str, str]:
    network = "sandbox-exec: no network but unix sockets in the session's own directory"
    return {**plain_guarantees(), "no_network": network}


def _plan(limits: Confinement, layout: Layout, python: str) -> LaunchPlan:
    """Plan a kernel under sandbox-exec: no network, writing only where it must. Reading is not limited."""
    writable = [layout.scratch, layout.keep, layout.sockets, *(Path(path).absolute() for path in limits.writable)]
    places = " ".join(f'(subpath "{path}")' for path in writable)
    profile = (
        "(version 1)(allow default)(deny network*)"
        f'(allow network* (subpath "{layout.sockets}"))'
        f'(deny file-write*)(allow file-write* {places} (literal "/dev/null"))'
    )
    plain = PLAIN.plan(limits, layout, python)
    return replace(plain, argv=["sandbox-exec", "-p", profile, *plain.argv])


SEATBELT = Tier(
    letter="S",
    mechanisms="sandbox-exec (macOS), resource limits",
    how="confined by sandbox-exec",
    platform="darwin",
    plan=_plan,
    guarantees=_guarantees,
    missing={},
    why_unavailable=_why_unavailable,
    note="tier S has not been tested by its authors",
)
