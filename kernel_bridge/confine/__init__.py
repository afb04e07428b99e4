"""Confinement: what a kernel is asked to be kept from, what this machine can give, and what a session got.

A vocabulary of guarantees, not of mechanisms. Three tiers give them, chosen by a probe that tries: N, namespaces by
bubblewrap (`bubblewrap.py`); L, Landlock where namespaces are refused (`landlocked.py`); P, limits only (`plain.py`).
What a tier cannot give is reported as missing, with the reason; nothing is claimed that is not in force.
"""

from __future__ import annotations

from kernel_bridge.confine.layout import Layout
from kernel_bridge.confine.plan import LaunchPlan
from kernel_bridge.confine.probe import foresee, limits_asked, plan_launch, prepare_files, probe, resolve
from kernel_bridge.confine.vocabulary import GUARANTEES, TIERS, Confinement, ConfinementReport, Probe

__all__ = [
    "GUARANTEES",
    "TIERS",
    "Confinement",
    "ConfinementReport",
    "LaunchPlan",
    "Layout",
    "Probe",
    "foresee",
    "limits_asked",
    "plan_launch",
    "prepare_files",
    "probe",
    "resolve",
]
