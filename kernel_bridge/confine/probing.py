"""What this machine can give a kernel, found by doing it once, and what follows for a session."""

from __future__ import annotations

import functools
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from kernel_bridge.confine.guarantees import GUARANTEES, Confinement, limits_asked, unasked
from kernel_bridge.confine.report import ConfinementReport, Probe
from kernel_bridge.confine.tier import Tier
from kernel_bridge.confine.tier_plain import PLAIN
from kernel_bridge.confine.tiers import TIERS
from kernel_bridge.confine.trial import why_refused
from kernel_bridge.errors import ConfinementUnavailable, StartupFailed, is_transient, what_to_do

__all__ = ["expected_report", "probe", "probed", "resolve"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where trials have their files. What is found does not depend on it, nor does what is remembered."""

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
    for tier in TIERS.values():
        if tier.platform == sys.platform:
            reason = _why_not(tier, place.root)
            if reason is None:
                return _found(tier, notes)
            notes.append(f"tier {tier.letter} is not available: {reason}")
    return _found(PLAIN, notes)


def _why_not(tier: Tier, root: Path | None) -> str | None:
    """Why this machine refuses a tier; None: it gives it.

    Raises:
        StartupFailed: there was trouble. It must not pass for a refusal, by which the kernel would be confined less.
    """
    try:
        return tier.why_unavailable() or why_refused(tier, root)
    except OSError as error:
        reason = str(error)
        if not is_transient(error):
            return reason
        raise StartupFailed(
            f"what confinement this machine gives (tier {tier.letter}) could not be found out now: "
            f"{reason}{what_to_do(reason)}. No kernel was started, because none may be confined less for trouble that "
            "may pass; start it again once that is mended"
        ) from error


def _found(tier: Tier, notes: list[str]) -> Probe:
    given = tier.guarantees()
    available = {name: given[name] for name in GUARANTEES if name in given}
    missing = {name: tier.missing.get(name, "not available in this tier") for name in GUARANTEES if name not in given}
    return Probe(tier.letter, available, missing, (*notes, *([tier.note] if tier.note else [])))


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
    limits, report = expected_report(asked, root)
    unmet = {name: report.missing[name] for name in GUARANTEES if name in limits.require and name in report.missing}
    if unmet:
        raise ConfinementUnavailable(unmet)
    if report.tier not in (None, "N"):
        _warn_once()
    return limits, report.tier or PLAIN.letter, report


def expected_report(
    asked: str | Confinement | frozenset[str] | set[str], root: Path | None = None
) -> tuple[Confinement, ConfinementReport]:
    """The limits, and what will be in force where what must hold does hold.

    Raises: ValueError and StartupFailed, as `resolve` does.
    """
    if asked == "off":
        return _off()
    limits = limits_asked(asked)
    found = probed(_Place(root))
    in_force, missing = dict(found.available), dict(found.missing)
    not_asked = {name: why for name, why in unasked(limits).items() if in_force.pop(name, None) is not None}
    return limits, ConfinementReport(
        limits.require, in_force, missing | not_asked, found.tier, unasked=frozenset(not_asked)
    )


def _off() -> tuple[Confinement, ConfinementReport]:
    limits = Confinement(memory_bytes=None, processes=None, scratch_bytes=None, open_files=None)
    kept = ("own_process", "killed_with_host", "clean_environment", "output_capped", "wall_time_capped",
            "no_new_privileges")  # fmt: skip
    in_force = {name: how for name, how in PLAIN.guarantees().items() if name in kept}
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
