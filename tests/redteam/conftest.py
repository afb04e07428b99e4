"""What the attacks get: a host of kernels for each tier that this machine can give."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from rig import KINDS, Tier, TierUnavailable, kinds_here
from victim import BOUNDED, Victim, each, learn

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
def hosts() -> Iterator[list[Tier]]:
    """A host of kernels for every tier that can be had, all at once; see test_tiers.py for those that cannot."""
    if not kinds_here():
        pytest.skip("confinement is attacked on Linux only")
    opened: list[Tier] = []
    try:
        with ThreadPoolExecutor(2) as pool:
            for name, host in zip(kinds_here(), pool.map(_open, kinds_here()), strict=True):
                _ran[name] = host if isinstance(host, str) else "ran"
                opened += [host] if isinstance(host, Tier) else []
        if not opened:
            pytest.skip(f"no tier can be had here: {_ran}")
        yield opened
    finally:
        for host in opened:
            host.close()


def _open(name: str) -> Tier | str:
    try:
        host = Tier(KINDS[name])
    except TierUnavailable as why:
        return str(why)
    host.open("bounded", BOUNDED)
    return host


@pytest.fixture
def victims(hosts: list[Tier]) -> list[Victim]:
    """A session with small limits in each tier, which the attacks share: its kernel dies often, the session goes on."""
    made = [Victim(host, "bounded") for host in hosts]
    each(made, learn)
    return made


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
    if "tier" in request.fixturenames:
        _look_after(request.getfixturevalue("tier"), {"shared"}, request.node.name)
    if "hosts" in request.fixturenames:
        for host in request.getfixturevalue("hosts"):
            _look_after(host, {"shared", "bounded"}, request.node.name)


def _look_after(host: Tier, expected: set[str], test: str) -> None:
    assert host.works(), f"{host.name}: the shared session does not work after {test}"
    left = host.host("result = sorted(sessions)")
    assert set(left) == expected, f"{host.name}: {test} left sessions open: {left}"
