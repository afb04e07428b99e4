"""Confinement: what a kernel is asked to be kept from, what this machine can give, and what a session got.

A vocabulary of guarantees, not of mechanisms. Tiers give them, strongest first: N, namespaces by bubblewrap; L,
Landlock where namespaces are refused; S, sandbox-exec on macOS; P, limits only. The first that comes through a trial
run is used. What it cannot give is reported as missing, with the reason; nothing is claimed that is not in force.
"""

from __future__ import annotations

from kernel_bridge.confine.guarantees import GUARANTEES, Confinement, limits_asked
from kernel_bridge.confine.probing import expected_report, probe, resolve
from kernel_bridge.confine.report import ConfinementReport, Probe
from kernel_bridge.confine.tiers import TIERS, plan_launch

__all__ = [
    "GUARANTEES",
    "TIERS",
    "Confinement",
    "ConfinementReport",
    "Probe",
    "expected_report",
    "limits_asked",
    "plan_launch",
    "probe",
    "resolve",
]
