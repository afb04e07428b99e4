"""The machinery itself: no tier is left out silently."""

from __future__ import annotations

import subprocess
import sys

import pytest
from rig import KINDS, Kind, Tier, kinds_here

from kernel_bridge.confine.tier_bubblewrap import find_bubblewrap
from kernel_bridge.confine.tier_landlock import why_no_landlock

_TRY = """
import ctypes, os, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)

def do(what, done):
    if done < 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")

if "mount" in sys.argv:  # what the driver needs to open a way for another user, and bubblewrap for everything
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if not child:
            do("unshare is refused to root", libc.unshare(0x20000))
            do("mount is refused to root", libc.mount(b"none", b"/", None, 16384 | (1 << 18), None))
            do("mount is refused to root", libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, None))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(1)
if "user" in sys.argv:
    os.setgroups([])
    os.setresgid(54321, 54321, 54321)
    os.setresuid(54321, 54321, 54321)
if "namespaces" in sys.argv:
    flags = 0x2C020000 | 0x40000000  # mounts, hostname, pids, network, ipc
    do("new namespaces are refused", libc.unshare(flags if os.geteuid() == 0 else flags | 0x10000000))
"""


def test_a_host_works_and_says_its_tier(tier: Tier) -> None:
    assert tier.facts["probe"].startswith(f"tier {tier.letter}:")
    assert tier.works()


@pytest.mark.parametrize("name", kinds_here() or ["none"])
def test_a_tier_is_left_out_only_where_the_system_itself_refuses_it(
    name: str, every_host: dict[str, Tier | str]
) -> None:
    if isinstance(every_host[name], Tier):
        return
    refused = _refusal(KINDS[name])
    assert refused is not None, f"{name} could be had here, and was not: {every_host[name]}"
    pytest.skip(f"{name}: {refused}")


def _refusal(kind: Kind) -> str | None:
    """Why this system cannot give a tier, found without the driver and without the probe; None: it can."""
    if kind.letter == "N" and (said := find_bubblewrap())[0] is None:
        return said[1]
    if kind.letter == "L" and (why := why_no_landlock()) is not None:
        return why
    changes_user = "root-N" in kinds_here() and not kind.root
    steps = ["namespaces"] * (kind.letter == "N") + ["user"] * changes_user
    if "root-N" in kinds_here() and (changes_user or (kind.without_namespaces and not kind.keep_root)):
        steps.append("mount")
    tried = subprocess.run([sys.executable, "-c", _TRY, *steps], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else tried.stderr.strip() or f"{steps} ended with {tried.returncode}"
