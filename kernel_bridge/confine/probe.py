"""What this machine can give a kernel, found by doing it once, and what follows for a session."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kernel_bridge.confine.asking import ask
from kernel_bridge.confine.bubblewrap import ARGUMENTS_FD, find_bubblewrap, plan_wrapped, wrapped_guarantees
from kernel_bridge.confine.landlocked import landlocked_guarantees, plan_landlocked, why_no_landlock
from kernel_bridge.confine.layout import Layout
from kernel_bridge.confine.places import check_extra, check_shared
from kernel_bridge.confine.plain import plain_guarantees, plan_plain
from kernel_bridge.confine.plan import LaunchPlan
from kernel_bridge.confine.seatbelt import plan_seatbelt, seatbelt_guarantees
from kernel_bridge.confine.vocabulary import GUARANTEES, Confinement, ConfinementReport, Probe
from kernel_bridge.errors import ConfinementUnavailable

__all__ = ["foresee", "limits_asked", "plan_launch", "probe", "resolve"]

logger = logging.getLogger(__name__)

_TRIAL_SECONDS = 60  # a machine that is slow now must not pass for one that cannot, as long as the process lives


@functools.cache
def probe() -> Probe:
    """What this machine can give, guarantee by guarantee: the strongest tier that a trial run came through.

    The trial runs the real command line with the real seal around an empty Python program. It is made once in the
    life of a process.
    """
    notes: list[str] = []
    if sys.platform.startswith("linux"):
        reason = _try_namespaces()
        if reason is None:
            return _probe("N", wrapped_guarantees(), notes)
        notes.append(f"tier N is not to be had: {reason}")
        reason = _try_landlock()
        if reason is None:
            return _probe("L", landlocked_guarantees(sys.executable), notes)
        notes.append(f"tier L is not to be had: {reason}")
    elif sys.platform == "darwin":
        reason = _trial(plan_seatbelt)
        if reason is None:
            return _probe("S", seatbelt_guarantees(), ["tier S has not been tested by its authors"])
        notes.append(f"tier S is not to be had: {reason}")
    else:
        notes.append(f"on {sys.platform} a kernel is a plain process over loopback TCP; nothing confines it")
    return _probe("P", plain_guarantees(), notes)


def _probe(tier: str, available: Mapping[str, str], notes: list[str]) -> Probe:
    available = {name: available[name] for name in GUARANTEES if name in available}
    missing = {name: _WHY_MISSING[tier].get(name, "not to be had in this tier") for name in GUARANTEES}
    missing = {name: reason for name, reason in missing.items() if name not in available}
    return Probe(tier, available, missing, tuple(notes))


_NEEDS_NAMESPACES = "needs namespaces, tier N"
_NEEDS_FENCE = "needs tier N or L"
_WHY_MISSING: Mapping[str, Mapping[str, str]] = {
    "N": {
        "reduced_syscalls": "there is no system call filter for this kind of machine, so that files in memory that are "
        "nowhere mapped are not counted either",
    },
    "L": {
        "private_tmp": f"{_NEEDS_NAMESPACES}; /tmp and /dev/shm are out of reach instead",
        "no_host_processes_visible": f"{_NEEDS_NAMESPACES}; process numbers can be seen, nothing of the processes",
    },
    "S": {},
    "P": {
        "no_network": _NEEDS_FENCE,
        "filesystem_allowlist": _NEEDS_FENCE,
        "private_tmp": _NEEDS_NAMESPACES,
        "processes_capped": _NEEDS_FENCE,
        "reduced_syscalls": _NEEDS_FENCE,
        "no_host_processes_visible": _NEEDS_NAMESPACES,
    },
}


def _try_namespaces() -> str | None:
    wrapper, where = find_bubblewrap()
    if wrapper is None:
        return where
    reason = _trial(plan_wrapped)
    if reason is None:
        return None
    return f"{where} fails here ({reason}); {_how_to_allow_namespaces()}, or accept tier L"


_SWITCHES = (  # settings of the system that refuse a user new namespaces: where, the value that does, and its cure
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
)


def _how_to_allow_namespaces() -> str:
    """What would mend a refusal of namespaces, from what this system says of itself."""
    if os.geteuid() != 0:  # root needs no user namespace
        for path, refusing, cure in _SWITCHES:
            with contextlib.suppress(OSError):
                if Path(path).read_text(encoding="ascii").strip() == refusing:
                    return f"this system refuses them to ordinary users: have its administrator set {cure} (sysctl)"
    capability = "--cap-add SYS_ADMIN and " if os.geteuid() == 0 else ""
    options = " and ".join(f"--security-opt {name}=unconfined" for name in ("seccomp", "apparmor", "systempaths"))
    return f"if this is a container that refuses namespaces, run it with {capability}{options} (Docker's names)"


def _try_landlock() -> str | None:
    return why_no_landlock() or _trial(plan_landlocked)


def _trial(make: Callable[[Confinement, Layout, str], LaunchPlan]) -> str | None:
    """Run an empty program under a tier. None: it went well; else the reason."""
    with tempfile.TemporaryDirectory(prefix="kernel_bridge-probe-") as folder:
        root = Path(folder)
        os.chmod(root, 0o711)
        layout = Layout(root, root / "launch.json", root / "sockets", root / "keep", root / "scratch")
        for path in (layout.sockets, layout.keep, layout.scratch):
            path.mkdir()
        try:
            plan = make(Confinement(), layout, sys.executable)
            prepare_files(plan, layout)
            return _run_trial(plan, layout)
        except OSError as error:
            return str(error)


def _run_trial(plan: LaunchPlan, layout: Layout) -> str | None:
    layout.config.write_text(json.dumps({"seal": plan.seal, "trial": True}), encoding="utf-8")
    command = [*plan.argv, str(plan.inside.config)]
    descriptor = None
    if plan.wrapper_arguments is not None:
        descriptor = arguments_descriptor(plan.wrapper_arguments)
        command[command.index(str(ARGUMENTS_FD))] = str(descriptor)
    try:
        ended = ask(
            command,
            seconds=_TRIAL_SECONDS,
            env=dict(plan.environment),
            files=() if descriptor is None else (descriptor,),
            cwd=layout.scratch,
        )
    except subprocess.TimeoutExpired:
        return f"a trial run did not end within {_TRIAL_SECONDS} s"
    finally:
        if descriptor is not None:
            os.close(descriptor)
    if ended.returncode == 0:
        return None
    said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
    return said[-1][:300] if said else f"a trial run ended with status {ended.returncode}"


def arguments_descriptor(arguments: Sequence[str]) -> int:
    """An open file with a wrapper's arguments, each ended by a zero byte, to be read from its start."""
    descriptor = os.memfd_create("arguments")
    for argument in arguments:
        os.write(descriptor, os.fsencode(argument) + b"\0")
    return descriptor


def prepare_files(plan: LaunchPlan, layout: Layout) -> None:
    """Make the small files that a plan asks for, and give the writable directories to their owner."""
    for name, text in (plan.files or {}).items():
        path = layout.session / name
        path.write_text(text, encoding="utf-8")
        os.chmod(path, 0o644)
    if plan.owner is not None:
        for path in (layout.sockets, layout.keep, layout.scratch):
            os.chown(path, plan.owner, plan.owner)


def plan_launch(limits: Confinement, tier: str, layout: Layout, python: str) -> LaunchPlan:
    """Plan a kernel under a tier that `resolve` chose.

    Raises:
        ExtraPathUnusable: a path that was asked for is not there, or not for the kernel's user.
        OSError: the interpreter cannot be asked.
    """
    check_extra(limits)
    make = {"N": plan_wrapped, "L": plan_landlocked, "S": plan_seatbelt, "P": plan_plain}[tier]
    plan = make(limits, layout, python)
    if plan.owner is not None:
        check_shared(limits)
    return plan


def resolve(
    asked: str | Confinement | frozenset[str] | set[str],
) -> tuple[Confinement, str, ConfinementReport]:
    """Turn what the caller asked for into limits, the tier to use, and a report of what will be in force.

    Args:
        asked: `"auto"` (all that the machine gives), `"required"` (every guarantee, or no kernel; but `cpu_capped`,
            which wants a number), `"off"` (no limits; still a process of its own that dies with the host, in a clean
            environment), a set of guarantees that must hold, or a `Confinement`.

    Raises:
        ConfinementUnavailable: a guarantee that must hold cannot be given.
        ValueError: `asked` is none of these.
    """
    limits, report = foresee(asked)
    unmet = {name: report.missing[name] for name in GUARANTEES if name in limits.require and name in report.missing}
    if unmet:
        raise ConfinementUnavailable(unmet)
    if report.tier not in (None, "N"):
        _warn_once()
    return limits, report.tier or "P", report


def foresee(asked: str | Confinement | frozenset[str] | set[str]) -> tuple[Confinement, ConfinementReport]:
    """The limits, and what will be in force where what must hold does hold. Raises: ValueError, as `resolve` does."""
    if asked == "off":
        return _off()
    limits = limits_asked(asked)
    found = probe()
    in_force = dict(found.available)
    missing = dict(found.missing)
    unset = {
        "memory_capped": limits.memory_bytes,
        "cpu_capped": limits.cpu_seconds,
        "processes_capped": limits.processes,
        "scratch_capped": limits.scratch_bytes,
    }
    for name, value in unset.items():
        if value is None and in_force.pop(name, None) is not None:
            missing[name] = "no limit was set"
    return limits, ConfinementReport(limits.require, in_force, missing, found.tier)


def limits_asked(asked: object) -> Confinement:
    """The limits and requirements in what the caller asked for, unless that is `"off"`. Raises: ValueError."""
    if isinstance(asked, Confinement):
        return asked
    if asked == "auto":
        return Confinement()
    if asked == "required":
        return Confinement(require=frozenset(GUARANTEES) - {"cpu_capped"})
    if isinstance(asked, (set, frozenset)):
        return Confinement(require=frozenset(asked))  # pyright: ignore[reportUnknownArgumentType] - checked there
    raise ValueError(
        'confinement must be "auto", "required", "off", a set of guarantees, or a Confinement, '
        f"not {asked!r}; the guarantees are: {', '.join(GUARANTEES)}"
    )


def _off() -> tuple[Confinement, ConfinementReport]:
    limits = Confinement(memory_bytes=None, processes=None, scratch_bytes=None, open_files=None)
    plain = plain_guarantees()
    kept = ("own_process", "killed_with_host", "clean_environment", "output_capped", "wall_time_capped",
            "no_new_privileges")  # fmt: skip
    in_force = {name: plain[name] for name in kept if name in plain}
    missing = {name: 'confinement="off"' for name in GUARANTEES if name not in in_force}
    return limits, ConfinementReport(frozenset(), in_force, missing)


@functools.cache
def _warn_once() -> None:
    found = probe()
    logger.warning(
        "Kernels run with weaker confinement than they could have: %s. Missing: %s. "
        "`python -m kernel_bridge probe` tells more.",
        "; ".join(found.notes),
        ", ".join(found.missing),
    )
