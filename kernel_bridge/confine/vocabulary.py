"""The guarantees by name, what is asked, what this machine gives. Knows no process and no mechanism's details."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kernel_bridge.errors import ConfinementUnavailable

__all__ = ["GUARANTEES", "Confinement", "ConfinementReport", "Probe", "probe", "resolve"]

GUARANTEES: Mapping[str, str] = {
    "own_process": "the agent's code runs in another process than the host's",
    "killed_with_host": "the kernel and everything it started end when the host ends, however it ends",
    "clean_environment": "no environment variable of the host reaches the kernel but a short harmless list",
    "no_network": "no connection can be made or taken",
    "filesystem_allowlist": "only named paths can be read, only scratch can be written",
    "private_tmp": "/tmp and /dev/shm are the kernel's own",
    "scratch_capped": "what the kernel writes is bounded in total",
    "memory_capped": "each process of the kernel is bounded in memory",
    "cpu_capped": "the kernel's CPU time is bounded",
    "processes_capped": "the number of processes and threads is bounded",
    "output_capped": "what a cell prints costs the host a fixed buffer at most",
    "wall_time_capped": "a cell's own time is bounded",
    "no_new_privileges": "set-uid programs give the kernel nothing",
    "reduced_syscalls": "rarely needed and dangerous system calls are refused",
    "no_host_processes_visible": "the kernel cannot see other processes",
}
"""Every guarantee and what it means."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a kernel may have and what must be guaranteed. Sizes are bytes, times are seconds."""

    require: frozenset[str] = frozenset()  # guarantees without which no kernel is started
    memory_bytes: int | None = 2 * 2**30  # of private memory, for each process; None: unbounded
    cpu_seconds: int | None = None  # CPU time of each process, for the whole session; None: unbounded
    processes: int | None = 128  # not enforced by a plain process; see the report
    scratch_bytes: int | None = 2**30  # the largest single file a plain process may write; None: unbounded
    open_files: int | None = 1024
    read_only: tuple[str | Path, ...] = ()  # extra paths; a plain process can read everything its user can
    writable: tuple[str | Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])  # variables given to the kernel

    def __post_init__(self) -> None:
        unknown = sorted(set(self.require) - set(GUARANTEES))
        if unknown:
            raise ValueError(f"Confinement.require names {unknown}; the guarantees are: {', '.join(GUARANTEES)}")
        for name in ("memory_bytes", "cpu_seconds", "processes", "scratch_bytes", "open_files"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
                raise ValueError(f"Confinement.{name} must be a positive whole number or None, not {value!r}")
        for key, value in self.environment.items():
            if not isinstance(key, str) or not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(f"Confinement.environment maps str to str, not {key!r} to {value!r}")


@dataclass(frozen=True, slots=True)
class ConfinementReport:
    """What one session runs under."""

    requested: frozenset[str]
    in_force: Mapping[str, str]  # guarantee -> the mechanism that gives it
    missing: Mapping[str, str]  # guarantee -> why it is not given

    def line(self) -> str:
        """The report in one line."""
        return f"in force: {', '.join(self.in_force) or 'nothing'}; missing: {', '.join(self.missing) or 'nothing'}"


@dataclass(frozen=True, slots=True)
class Probe:
    """What this machine can give a kernel."""

    available: Mapping[str, str]  # guarantee -> mechanism
    missing: Mapping[str, str]  # guarantee -> why not, and what would mend it

    def table(self) -> str:
        """One line for each guarantee."""
        width = max(map(len, GUARANTEES))
        rows = [
            f"{name:<{width}}  yes  {self.available[name]}"
            if name in self.available
            else f"{name:<{width}}  no   {self.missing[name]}"
            for name in GUARANTEES
        ]
        return "\n".join(rows)


@functools.cache
def probe() -> Probe:
    """What this machine can give, guarantee by guarantee."""
    posix = os.name == "posix"
    linux = sys.platform.startswith("linux")
    available = {
        "own_process": "a separate Python process in its own process group",
        "clean_environment": "the environment is built from a short list",
        "output_capped": "head and tail kept in the kernel, and again on the host",
        "wall_time_capped": "a clock on the host: interrupt, then kill",
    }
    if linux:
        available["killed_with_host"] = "a guardian process: lifeline pipe, parent-death signal, subreaper"
        available["no_new_privileges"] = "prctl(PR_SET_NO_NEW_PRIVS)"
    elif posix:
        available["killed_with_host"] = "a guardian process: lifeline pipe; daemonised grandchildren may escape"
    if posix:
        available["memory_capped"] = "setrlimit(RLIMIT_DATA, RLIMIT_AS), for each process"
        available["cpu_capped"] = "setrlimit(RLIMIT_CPU), for each process, when cpu_seconds is set"
    not_yet = "this version runs the kernel as a plain process of the user"
    missing = {
        name: not_yet if posix else f"{not_yet}, and this platform has no setrlimit"
        for name in GUARANTEES
        if name not in available
    }
    return Probe(available, missing)


def resolve(asked: str | Confinement | frozenset[str] | set[str]) -> tuple[Confinement, ConfinementReport]:
    """Turn what the caller asked for into limits to set and a report of what will be in force.

    Args:
        asked: `"auto"` (all that the machine gives), `"required"` (all there is, or no kernel), `"off"` (no limits;
            still a process of its own that dies with the host, in a clean environment), a set of guarantees that must
            hold, or a `Confinement`.

    Raises:
        ConfinementUnavailable: a guarantee that must hold cannot be given.
        ValueError: `asked` is none of these.
    """
    found = probe()
    always = {"own_process", "clean_environment", "output_capped", "wall_time_capped"}
    if asked == "off":
        limits = Confinement(memory_bytes=None, processes=None, scratch_bytes=None, open_files=None)
        kept = always | {"killed_with_host", "no_new_privileges"}
        in_force = {name: found.available[name] for name in GUARANTEES if name in found.available and name in kept}
        missing = {name: 'confinement="off"' for name in GUARANTEES if name not in in_force}
        return limits, ConfinementReport(frozenset(), in_force, missing)
    if asked == "auto":
        limits = Confinement()
    elif asked == "required":
        limits = Confinement(require=frozenset(GUARANTEES) - {"cpu_capped"})
    elif isinstance(asked, Confinement):
        limits = asked
    elif isinstance(asked, (set, frozenset)):
        limits = Confinement(require=frozenset(asked))
    else:
        raise ValueError(
            'confinement must be "auto", "required", "off", a set of guarantees, or a Confinement, '
            f"not {asked!r}; the guarantees are: {', '.join(GUARANTEES)}"
        )
    in_force = dict(found.available)
    missing = dict(found.missing)
    for name, value in (("memory_capped", limits.memory_bytes), ("cpu_capped", limits.cpu_seconds)):
        if value is None and in_force.pop(name, None) is not None:
            missing[name] = "no limit was set"
    unmet = {name: missing[name] for name in GUARANTEES if name in limits.require and name in missing}
    if unmet:
        raise ConfinementUnavailable(unmet)
    return limits, ConfinementReport(limits.require, in_force, missing)
