"""Tier S, macOS: the system's sandbox-exec with a profile, and resource limits.

Written small, because this project's own checks have no Mac: it has not been run. The trial run of `probe()` decides
whether it is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import PACKAGE, LaunchPlan, clean_environment, kernel_command, rlimits
from kernel_bridge.confine.tier_plain import plain_guarantees
from kernel_bridge.files.layout import Layout

__all__ = ["plan_seatbelt", "seatbelt_guarantees", "why_no_seatbelt"]


def why_no_seatbelt() -> str | None:
    """Why this tier cannot be had here; None when it can."""
    return None if shutil.which("sandbox-exec") else "sandbox-exec is not there"


def seatbelt_guarantees() -> Mapping[str, str]:
    """What this tier gives: guarantee -> mechanism."""
    found = dict(plain_guarantees())
    found["no_network"] = "sandbox-exec: no network but unix sockets in the session's own directory"
    return found


def plan_seatbelt(limits: Confinement, layout: Layout, python: str) -> LaunchPlan:
    """Plan a kernel under sandbox-exec: no network, writing only where it must. Reading is not limited."""
    program = shutil.which("sandbox-exec")
    if program is None:
        raise OSError("sandbox-exec is not there")
    writable = [layout.scratch, layout.keep, layout.sockets, *(Path(path).absolute() for path in limits.writable)]
    places = " ".join(f'(subpath "{path}")' for path in writable)
    profile = (
        "(version 1)(allow default)(deny network*)"
        f'(allow network* (subpath "{layout.sockets}"))'
        f'(deny file-write*)(allow file-write* {places} (literal "/dev/null"))'
    )
    seal = {
        "rlimits": rlimits(limits, count_processes=False),
        "user": None,
        "landlock": None,
        "seccomp": None,
        "no_new_privileges": False,
    }
    return LaunchPlan(
        argv=[program, "-p", profile, *kernel_command(python, str(PACKAGE))],
        environment=clean_environment(limits, layout.scratch, python),
        inside=layout,
        seal=seal,
    )
