"""Confinement: what a kernel is asked to be kept from, what this machine can give, and what a session got.

A vocabulary of guarantees, not of mechanisms. This version gives what a plain process can have: its own process
group that dies with the host, a clean environment, a scratch directory, and resource limits. What it cannot give it
reports as missing, with the reason; it never claims more.
"""

from __future__ import annotations

from kernel_bridge.confine.plan import LaunchPlan, plan_launch
from kernel_bridge.confine.vocabulary import (
    GUARANTEES,
    Confinement,
    ConfinementReport,
    Probe,
    probe,
    resolve,
)

__all__ = [
    "GUARANTEES",
    "Confinement",
    "ConfinementReport",
    "LaunchPlan",
    "Probe",
    "plan_launch",
    "probe",
    "resolve",
]
