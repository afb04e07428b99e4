"""Tier P: a plain process with resource limits. All that every platform has."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import PACKAGE, LaunchPlan, clean_environment, kernel_command, rlimits
from kernel_bridge.files.layout import Layout

__all__ = ["plain_guarantees", "plan_plain"]


def plain_guarantees() -> Mapping[str, str]:
    """What a plain process is given here: guarantee -> mechanism."""
    posix, linux = os.name == "posix", sys.platform.startswith("linux")
    found = {
        "own_process": "a separate Python process in its own process group",
        "clean_environment": "the environment is built from a short list",
        "output_capped": "head and tail kept in the kernel, and again on the host",
        "wall_time_capped": "a clock on the host: interrupt, then kill",
    }
    if linux:
        found["killed_with_host"] = "a guardian process: lifeline pipe, parent-death signal, subreaper"
        found["no_new_privileges"] = "prctl(PR_SET_NO_NEW_PRIVS)"
    elif posix:
        found["killed_with_host"] = "a guardian process: lifeline pipe; daemonised grandchildren may escape"
    if posix:
        found["cpu_capped"] = "setrlimit(RLIMIT_CPU), for each process"
        found["memory_capped"] = "setrlimit(RLIMIT_DATA, RLIMIT_AS), for each process"
    if linux:
        found["memory_capped"] += "; a watchdog on the host for all together"
        found["scratch_capped"] = (
            "a watchdog on the host over the scratch directory, not over files that are on their way in sockets; "
            "setrlimit(RLIMIT_FSIZE)"
        )
    return found


def plan_plain(limits: Confinement, layout: Layout, python: str) -> LaunchPlan:
    """Plan a kernel without any confinement but limits."""
    seal = {
        "rlimits": rlimits(limits, count_processes=False),
        "user": None,
        "dies_with_parent": sys.platform.startswith("linux"),
        "landlock": None,
        "seccomp": None,
        "no_new_privileges": sys.platform.startswith("linux"),
    }
    return LaunchPlan(
        argv=kernel_command(python, str(PACKAGE)),
        environment=clean_environment(limits, layout.scratch, python),
        inside=layout,
        seal=seal if os.name == "posix" else None,
    )
