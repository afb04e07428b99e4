"""All tiers, and the plan of a kernel under one of them."""

from __future__ import annotations

from collections.abc import Mapping

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import LaunchPlan
from kernel_bridge.confine.readable_paths import check_extra, check_shared
from kernel_bridge.confine.tier import Tier
from kernel_bridge.confine.tier_bubblewrap import BUBBLEWRAP
from kernel_bridge.confine.tier_landlock import LANDLOCK
from kernel_bridge.confine.tier_plain import PLAIN
from kernel_bridge.confine.tier_seatbelt import SEATBELT
from kernel_bridge.files.layout import Layout

__all__ = ["TIERS", "plan_launch"]

TIERS: Mapping[str, Tier] = {tier.letter: tier for tier in (BUBBLEWRAP, LANDLOCK, SEATBELT, PLAIN)}
"""The tiers by their letters, strongest first; the last one is available everywhere."""


def plan_launch(limits: Confinement, tier: str, layout: Layout, python: str) -> LaunchPlan:
    """Plan a kernel under a tier that `resolve` chose.

    Raises:
        ExtraPathUnusable: a path that was asked for is not there, or not for the kernel's user.
        OSError: the interpreter cannot be asked.
    """
    check_extra(limits)
    plan = TIERS[tier].plan(limits, layout, python)
    if plan.owner is not None:
        check_shared(limits)
    return plan
