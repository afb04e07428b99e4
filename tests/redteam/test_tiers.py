"""The machinery itself: no tier is left out silently."""

from __future__ import annotations

import subprocess
import sys

import pytest
from rig import KINDS, Tier, TierUnavailable, kinds_here

from kernel_bridge.confine.bubblewrap import find_bubblewrap

_TRY = """
import ctypes, os, sys
flag = 0x20000 if os.geteuid() == 0 else 0x10000000
sys.exit(ctypes.CDLL(None, use_errno=True).unshare(flag) != 0)
"""


def test_a_host_works_and_says_its_tier(tier: Tier) -> None:
    assert tier.facts["probe"].startswith(f"tier {tier.letter}:")
    assert tier.works()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bubblewrap is for Linux")
def test_tier_n_runs_where_bubblewrap_and_namespaces_are(tiers_that_ran: dict[str, str]) -> None:
    wrapper, why = find_bubblewrap()
    if wrapper is None:
        pytest.skip(why)
    if subprocess.run([sys.executable, "-c", _TRY], check=False).returncode != 0:
        pytest.skip("this machine refuses namespaces")
    reasons: dict[str, str] = {}
    for name in kinds_here():
        if name.endswith("-N"):
            reasons[name] = tiers_that_ran.get(name) or _try(name)
    assert "ran" in reasons.values(), reasons


def _try(name: str) -> str:
    try:
        Tier(KINDS[name]).close()
    except TierUnavailable as why:
        return str(why)
    return "ran"
