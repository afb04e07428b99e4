"""What the attacks get: a host of kernels for each tier that this machine can give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rig import KINDS, Tier, TierUnavailable, kinds_here

_ran: dict[str, str] = {}  # kind -> "ran", or why it could not


@pytest.fixture(scope="session", params=kinds_here() or ["none"])
def tier(request: pytest.FixtureRequest) -> Iterator[Tier]:
    """A host of kernels, one for each tier and test run, with an open session named "shared"."""
    name: str = request.param
    if name not in KINDS:
        pytest.skip("confinement is attacked on Linux only")
    if name in _ran and _ran[name] != "ran":
        pytest.skip(f"{name}: {_ran[name]}")
    try:
        host = Tier(KINDS[name])
    except TierUnavailable as why:
        _ran[name] = str(why)
        pytest.skip(f"{name}: {why}")
    _ran[name] = "ran"
    yield host
    host.close()


@pytest.fixture(scope="session")
def tiers_that_ran() -> dict[str, str]:
    """Kind -> "ran", or why it could not; of those that were asked for so far."""
    return _ran


@pytest.fixture(autouse=True)
def nothing_left_by_the_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each attack: the session it shared works, on the same host, and no session of its own is left.

    Takes the place of the check of the same name above: what a driver runs is the driver's, and it restarts kernels.
    """
    yield
    if "tier" not in request.fixturenames:
        return
    host: Tier = request.getfixturevalue("tier")
    assert host.works(), f"{host.name}: the shared session does not work after {request.node.name}"
    left = host.host("result = sorted(sessions)")
    assert left == ["shared"], f"{request.node.name} left sessions open: {left}"
