"""What the attacks get: a host of kernels for each tier that this machine can give."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from rig import HERE, KINDS, Tier, TierUnavailable, kinds_here
from victim import BOUNDED, Victim, each, learn


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of `REDTEAM=others`, which follows a run with the usual kinds: leave out what attacks none of these hosts."""
    if os.environ.get("REDTEAM") == "others":
        ran = [item for item in items if item.path.parent == HERE and "every_host" not in _fixtures(item)]
        config.hook.pytest_deselected(items=ran)
        items[:] = [item for item in items if item not in ran]


def _fixtures(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []


@pytest.fixture(scope="session")
def every_host() -> Iterator[dict[str, Tier | str]]:
    """Kind -> its host of kernels, or why there can be none. Each has the open sessions "shared" and "bounded"."""
    if not kinds_here():
        pytest.skip("of the kinds of hosts that are asked for, none can be had here")
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(kinds_here(), pool.map(_open, kinds_here()), strict=True))
    yield found
    for host in found.values():
        if isinstance(host, Tier):
            host.close()


def _open(name: str) -> Tier | str:
    try:
        host = Tier(KINDS[name])
    except TierUnavailable as why:
        return str(why)
    host.open("bounded", BOUNDED)
    return host


@pytest.fixture(params=kinds_here() or ["none"])
def tier(request: pytest.FixtureRequest, every_host: dict[str, Tier | str]) -> Tier:
    """Each of them, one after the other."""
    host = every_host[request.param]
    if isinstance(host, str):
        pytest.skip(f"{request.param}: {host}")
    return host


@pytest.fixture
def hosts(every_host: dict[str, Tier | str]) -> list[Tier]:
    """All of them that can be had; see test_tiers.py for those that cannot."""
    opened = [host for host in every_host.values() if isinstance(host, Tier)]
    if not opened:
        pytest.skip(f"no tier can be had here: {every_host}")
    return opened


@pytest.fixture
def victims(hosts: list[Tier]) -> list[Victim]:
    """A session with small limits in each tier, which the attacks share: its kernel dies often, the session goes on."""
    made = [Victim(host, "bounded") for host in hosts]
    each(made, learn)
    return made


@pytest.fixture(autouse=True)
def nothing_left_by_the_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each attack: the session it shared works, on the same host, and no session of its own is left.

    Takes the place of the check of the same name above: what a driver runs is the driver's, and it restarts kernels.
    """
    attacked = [request.getfixturevalue("tier")] if "tier" in request.fixturenames else []
    if "hosts" in request.fixturenames:
        attacked += request.getfixturevalue("hosts")
    yield
    for host in attacked:
        assert host.works(), f"{host.name}: the shared session does not work after {request.node.name}"
        left = set(host.host("result = sorted(sessions)"))
        assert left == {"shared", "bounded"}, f"{host.name}: {request.node.name} left sessions open: {left}"


@pytest.fixture(scope="module", autouse=True)
def nothing_left_by_the_module() -> None:
    """The same for the check of this name."""
