"""One kernel per module, shared by the tests to which its history does not matter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from living import ENDLESS, add

from kernel_bridge import KernelInterpreter, KernelSession

TIERS = ("auto", "off")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that was interrupted gets longer to end than its kernel is given otherwise.

    For tests in which it does end, and of which a machine under load must not make tests of kernels that are killed.
    """
    for module in ("live.kernel", "session"):
        monkeypatch.setattr(f"kernel_bridge.{module}.GRACE_SECONDS", 30.0)


@pytest.fixture(scope="module")
def module_kernel() -> Iterator[KernelInterpreter]:
    with KernelInterpreter() as interpreter:
        yield interpreter


@pytest.fixture
def kernel(module_kernel: KernelInterpreter) -> KernelInterpreter:
    """The module's kernel, without tools, output fields and validator; what earlier tests defined is still there."""
    module_kernel.bind(tools={})
    module_kernel.submit_validator = None
    module_kernel.execute("pass")  # takes what there is to be told of the checkpoint of an earlier test's last cell
    return module_kernel


@pytest.fixture(scope="module", params=TIERS)
def module_session(request: pytest.FixtureRequest) -> Iterator[KernelSession]:
    with KernelSession(confinement=request.param, restarts=ENDLESS) as session:
        yield session


@pytest.fixture(params=TIERS)
def fresh(request: pytest.FixtureRequest) -> Iterator[KernelSession]:
    """For a test whose kernel dies: a new one in its place would count as left behind by the test."""
    with KernelSession({"add": add}, confinement=request.param, restarts=ENDLESS) as session:
        session.run("kept = 41")
        yield session


@pytest.fixture
def session(module_session: KernelSession) -> KernelSession:
    """One for each tier, for all tests that its kernel survives."""
    module_session.tools, module_session.judge = {"add": add}, None
    assert module_session.run("kept = 41").failure is None
    return module_session
