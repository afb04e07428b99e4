"""What this machine can give a kernel, found by doing it once, and what follows for a session."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import marshal
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel_bridge.confine.guarantees import GUARANTEES, Confinement, ConfinementReport, Probe
from kernel_bridge.confine.launch_plan import ARGUMENTS, PACKAGE, LaunchPlan
from kernel_bridge.confine.readable_paths import check_extra, check_shared
from kernel_bridge.confine.tier_bubblewrap import find_bubblewrap, plan_wrapped, wrapped_guarantees
from kernel_bridge.confine.tier_landlock import landlocked_guarantees, plan_landlocked, why_no_landlock
from kernel_bridge.confine.tier_plain import plain_guarantees, plan_plain
from kernel_bridge.confine.tier_seatbelt import plan_seatbelt, seatbelt_guarantees, why_no_seatbelt
from kernel_bridge.confine.trial_outcome import Outcome, Refused, Trouble, Works, assert_never, judged
from kernel_bridge.confine.trial_program import Answer, ask
from kernel_bridge.errors import ConfinementUnavailable, StartupFailed
from kernel_bridge.files.layout import TRANSCRIPT, Layout
from kernel_bridge.files.private_files import make_file, open_new
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.os_errors import TransientError, is_transient, what_to_do

__all__ = ["foresee", "limits_asked", "plan_launch", "probe", "probed", "resolve", "write_guard"]

logger = logging.getLogger(__name__)

_TRIAL_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Place:
    """Where trials have their files. All places are the same to what is found, and to what remembers it."""

    root: Path | None = field(compare=False)


def probe() -> Probe:
    """What this machine can give, guarantee by guarantee: the strongest tier that a trial run came through.

    The trial runs the real command line with the real seal around an empty Python program. It is made once in the
    life of a process.

    Raises:
        StartupFailed: it could not be found out now. Nothing of that is remembered: the next call tries again.
    """
    return probed(_Place(None))


@functools.cache
def probed(place: _Place) -> Probe:
    notes: list[str] = []
    if sys.platform.startswith("linux"):
        if (reason := _settled("N", lambda: _try_namespaces(place))) is None:
            return _probe("N", _told(wrapped_guarantees), notes)
        notes.append(f"tier N is not to be had: {reason}")
        if (reason := _settled("L", lambda: _try_landlock(place))) is None:
            return _probe("L", landlocked_guarantees(sys.executable), notes)
        notes.append(f"tier L is not to be had: {reason}")
    elif sys.platform == "darwin":
        if (reason := _settled("S", lambda: _try_seatbelt(place))) is None:
            return _probe("S", seatbelt_guarantees(), ["tier S has not been tested by its authors"])
        notes.append(f"tier S is not to be had: {reason}")
    else:
        notes.append(f"on {sys.platform} a kernel is a plain process over loopback TCP; nothing confines it")
    return _probe("P", plain_guarantees(), notes)


def _settled(tier: str, attempt: Callable[[], Outcome]) -> str | None:
    """Whether a tier can be had. None: it can; else the reason why this machine refuses it.

    Raises:
        StartupFailed: there was trouble. It must not pass for a refusal, by which the kernel would be confined less.
    """
    try:
        outcome = attempt()
    except OSError as error:
        outcome = Trouble(str(error)) if is_transient(error) else judged(str(error), error.errno)
    if isinstance(outcome, Works):
        return None
    if isinstance(outcome, Refused):
        return outcome.reason
    if isinstance(outcome, Trouble):  # pyright: ignore[reportUnnecessaryIsInstance] - a fourth would end below
        raise _could_not_tell(tier, outcome.reason)
    return assert_never(outcome)


def _told(guarantees: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
    try:
        return guarantees()
    except TransientError as trouble:
        raise _could_not_tell("N", str(trouble)) from trouble


def _could_not_tell(tier: str, reason: str) -> StartupFailed:
    return StartupFailed(
        f"what confinement this machine gives (tier {tier}) could not be found out now: {reason}{what_to_do(reason)}. "
        "No kernel was started, because none may be confined less for trouble that may pass; start it again once that "
        "is mended"
    )


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


def _try_namespaces(place: _Place) -> Outcome:
    wrapper, where = find_bubblewrap()
    if wrapper is None:
        return Refused(where)
    outcome = _trial(plan_wrapped, place)
    if not isinstance(outcome, Refused):
        return outcome
    return Refused(f"{where} fails here ({outcome.reason}); {_how_to_allow_namespaces()}, or accept tier L")


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


def _try_landlock(place: _Place) -> Outcome:
    reason = why_no_landlock()
    return _trial(plan_landlocked, place) if reason is None else Refused(reason)


def _try_seatbelt(place: _Place) -> Outcome:
    reason = why_no_seatbelt()
    return _trial(plan_seatbelt, place) if reason is None else Refused(reason)


_Make = Callable[[Confinement, Layout, str], LaunchPlan]


def _trial(make: _Make, place: _Place) -> Outcome:
    """Run an empty program under a tier.

    A tier is refused only where the same program runs without it: else it is the machine that is in trouble.

    Raises:
        StartupFailed: there is no directory for it.
        OSError: it cannot be run.
    """
    outcome = _run_trial(make, place)
    if isinstance(outcome, Refused):
        plain = _run_trial(plan_plain, place)
        if not isinstance(plain, Works):
            return Trouble(f"not even a program without any confinement runs: {plain.reason}")
    return outcome


def _run_trial(make: _Make, place: _Place) -> Outcome:
    # A session's, so that it is found and removed when this process is killed now.
    directory = SessionDirectory(place.root)
    try:
        layout = directory.next_layout()
        plan = make(Confinement(), layout, sys.executable)
        config = {"seal": plan.seal, "trial": str(plan.inside.sockets / _ANSWER)}
        make_file(layout.config, json.dumps(config).encode())
        prepare_files(plan, layout)
        if plan.owner is not None:
            directory.let_pass()
        guard = layout.session / "guard"
        write_guard(guard, plan, None, [*plan.argv, str(plan.inside.config)])
        ended = ask(
            [sys.executable, "-I", "-S", str(PACKAGE / "inside" / "spawn.py"), str(guard)],
            seconds=_TRIAL_SECONDS,
            begins_fresh=True,
            env={**plan.environment, "LC_ALL": "C"},  # what went wrong is told by its words
            cwd=layout.scratch,
        )
        return _read_trial(layout.sockets / _ANSWER, ended)
    finally:
        directory.remove()


_ANSWER = TRANSCRIPT  # the file in which a trial says how it went: on its stdout anything may speak


def _read_trial(file: Path, ended: Answer) -> Outcome:
    try:
        refused: tuple[str, int | None] | None = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return _judge_silence(ended)
    return Works() if refused is None else judged(*refused)


def _judge_silence(ended: Answer) -> Refused | Trouble:
    """Why a trial ended before it could say how it went."""
    killed = -ended.status if ended.status < 0 else ended.status - 128
    if killed == getattr(signal, "SIGSYS", None):
        return Refused("a trial run made a system call that is not allowed here")
    if killed > 0:
        return Trouble(f"a trial run was killed by signal {killed}")
    said = ended.last_words()
    if not said and not ended.status:
        return Trouble("a trial run ended without a word")
    return judged(said or f"a trial run ended with status {ended.status}")


def write_guard(file: Path, plan: LaunchPlan, guardian: Mapping[str, Any] | None, argv: Sequence[str]) -> None:
    """Write what `inside/spawn.py` reads. Without a guardian it becomes the program itself. Raises: OSError."""
    config = {
        "guardian": None if guardian is None else dict(guardian),
        "argv": list(argv),
        "arguments": None if plan.wrapper_arguments is None else list(plan.wrapper_arguments),
        "descriptor": ARGUMENTS,
    }
    make_file(file, marshal.dumps(config))


def prepare_files(plan: LaunchPlan, layout: Layout) -> None:
    """Make the small files that a plan asks for and those that a kernel writes, and give the latter to their owner."""
    for path in layout.written():
        with contextlib.suppress(FileExistsError):
            os.close(open_new(Path(path)))
    for name, text in (plan.files or {}).items():
        make_file(layout.session / name, text.encode(), 0o644)
    if plan.owner is not None:
        for path in (layout.sockets, layout.keep, layout.scratch):
            os.chown(path, plan.owner, plan.owner)
        for path in layout.written():
            os.chown(path, plan.owner, plan.owner, follow_symlinks=False)


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
    asked: str | Confinement | frozenset[str] | set[str], root: Path | None = None
) -> tuple[Confinement, str, ConfinementReport]:
    """Turn what the caller asked for into limits, the tier to use, and a report of what will be in force.

    Args:
        asked: `"auto"` (all that the machine gives), `"required"` (every guarantee, or no kernel; but `cpu_capped`,
            which wants a number), `"off"` (no limits; still a process of its own that dies with the host, in a clean
            environment), a set of guarantees that must hold, or a `Confinement`.
        root: where sessions live, and trial runs too; None: the user's runtime directory.

    Raises:
        ConfinementUnavailable: a guarantee that must hold cannot be given.
        StartupFailed: what the machine gives could not be found out now.
        ValueError: `asked` is none of these.
    """
    limits, report = foresee(asked, root)
    unmet = {name: report.missing[name] for name in GUARANTEES if name in limits.require and name in report.missing}
    if unmet:
        raise ConfinementUnavailable(unmet)
    if report.tier not in (None, "N"):
        _warn_once()
    return limits, report.tier or "P", report


def foresee(
    asked: str | Confinement | frozenset[str] | set[str], root: Path | None = None
) -> tuple[Confinement, ConfinementReport]:
    """The limits, and what will be in force where what must hold does hold.

    Raises: ValueError and StartupFailed, as `resolve` does.
    """
    if asked == "off":
        return _off()
    limits = limits_asked(asked)
    found = probed(_Place(root))
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
