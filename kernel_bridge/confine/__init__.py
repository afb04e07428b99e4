"""Confinement: what a kernel is asked to be kept from, what this machine can give, and what a session got.

A vocabulary of guarantees, not of mechanisms. Three tiers give them, chosen by a probe that tries: N, namespaces by
bubblewrap (`tier_bubblewrap.py`); L, Landlock where namespaces are refused (`tier_landlock.py`); P, limits only
(`tier_plain.py`).
What a tier cannot give is reported as missing, with the reason; nothing is claimed that is not in force.
"""

from __future__ import annotations

from kernel_bridge.confine.guarantees import GUARANTEES, TIERS, Confinement, ConfinementReport, Probe
from kernel_bridge.confine.launch_plan import LaunchPlan
from kernel_bridge.confine.probing import foresee, limits_asked, plan_launch, prepare_files, probe, resolve

__all__ = [
    "GUARANTEES",
    "TIERS",
    "Confinement",
    "ConfinementReport",
    "LaunchPlan",
    "Probe",
    "foresee",
    "limits_asked",
    "plan_launch",
    "prepare_files",
    "probe",
    "resolve",
]
