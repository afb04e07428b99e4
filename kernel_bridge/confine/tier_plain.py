"""Tier P: a plain process with resource limits. All that every platform has."""

from __future__ import annotations

import os
import sys

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import PACKAGE, LaunchPlan, clean_environment, kernel_command, rlimits
from kernel_bridge.confine.tier import NEEDS_FENCE, NEEDS_NAMESPACES, Tier
from kernel_bridge.files.layout import Layout
from kernel_bridge.inside.launch_config import Seal

__all__ = ["PLAIN", "plain_guarantees"]


def plain_guarantees() -> dict[str, str]:
    """What a plain process is given here: guarantee -> mechanism."""
    posix, linux = os.name == "posix", sys.platform == "linux"
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


def _plan(limits: Confinement, layout: Layout, python: str) -> LaunchPlan:
    """Plan a kernel without any confinement but limits."""
    linux = sys.platform == "linux"
    seal = Seal(rlimits(limits, count_processes=False), dies_with_parent=linux, no_new_privileges=linux)
    return LaunchPlan(
        argv=kernel_command(python, str(PACKAGE)),
        environment=clean_environment(limits, layout.scratch, python),
        inside=layout,
        seal=seal if os.name == "posix" else None,
    )


PLAIN = Tier(
    letter="P",
    mechanisms="a plain process with resource limits",
    how="a plain process with limits",
    platform=None,
    plan=_plan,
    guarantees=plain_guarantees,
    missing={
        "no_network": NEEDS_FENCE,
        "filesystem_allowlist": NEEDS_FENCE,
        "private_tmp": NEEDS_NAMESPACES,
        "processes_capped": NEEDS_FENCE,
        "reduced_syscalls": NEEDS_FENCE,
        "no_host_processes_visible": NEEDS_NAMESPACES,
    },
    note=None
    if os.name == "posix"
    else f"on {sys.platform} a kernel is a plain process over loopback TCP; nothing confines it",
)
