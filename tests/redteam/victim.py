"""A victim: a session whose limits are attacked, and what becomes of it. Knows the rig, no attack."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from rig import ANSWER_SECONDS, PRELUDE, RAN_LONGER, TRIES, CellError, Tier

SMALL = "memory_bytes=400 * 2**20, scratch_bytes=8 * 2**20, processes=40, open_files=200"
"""What a bounded victim may have."""

BOUNDED = f"restarts=100, confinement=Confinement({SMALL})"
"""The options of the session that attacks on limits share."""

DEATH = "The kernel died while this cell ran"
KILLED = "it was killed, because"
MIB = 2**20
WAIT = 100  # seconds that a cell waits for what ends it, which a slow machine does late; none waits so long in vain


@dataclass(frozen=True, slots=True)
class Victim:
    """A session by name in a tier."""

    tier: Tier
    name: str

    def run(self, code: str, *, seconds: float = ANSWER_SECONDS, **variables: Any) -> str:
        """Run a cell and return its text. Raises: CellError."""
        return self.tier.run(code, session=self.name, seconds=seconds, **variables)

    def fate(self, code: str, *, seconds: float = ANSWER_SECONDS, **variables: Any) -> str:
        """What came of a cell: its text, or why it failed, or why its kernel died."""
        try:
            return self.run(code, seconds=seconds, **variables)
        except CellError as error:
            if error.kind != "CodeExecutionError":
                raise
            return error.message

    def dies(self, code: str, *, seconds: float = ANSWER_SECONDS, **variables: Any) -> str:
        """Run a cell that kills its kernel; what the agent is told of it.

        One that its limit of time could end as any other had not come to what it wants to do, and is run again.
        """
        for _ in range(TRIES):
            told = self.fate(code, seconds=seconds, **variables)
            if DEATH in told or RAN_LONGER not in told:
                break
        assert DEATH in told, f"{self.tier.name}: the kernel did not die: {told[:2000]}"
        return told

    def ends(self, code: str, *, seconds: float = ANSWER_SECONDS, **variables: Any) -> str:
        """Run a cell that costs its session; what the caller is told of it."""
        try:
            text = self.run(code, seconds=seconds, **variables)
        except CellError as error:
            if error.kind != "CodeInterpreterError":
                raise
            return error.message
        raise AssertionError(f"{self.tier.name}: the session goes on: {text[:2000]}")

    def host(self, code: str, **values: Any) -> Any:
        """Run Python in the host, with the session as `session`; what it assigns to `result` comes back."""
        return self.tier.host(f"session = sessions[{self.name!r}]\n{code}", **values)

    def assert_works(self) -> None:
        assert self.tier.works(self.name)


@contextlib.contextmanager
def victim(tier: Tier, options: str, *, name: str = "victim") -> Iterator[Victim]:
    """A session of the test's own, with any options; what it knows beforehand is in `rig.PRELUDE`."""
    with tier.session(options, name=name) as opened:
        yield Victim(tier, opened)


def at_every_tier(attack: Callable[[Victim], None]) -> Callable[[list[Victim]], None]:
    """Make a test of an attack that waits more than it works: it is made at all tiers at once.

    The victims are sessions with the options `BOUNDED`, one for each tier; each must work when the attack is over.
    """

    def test(victims: list[Victim]) -> None:
        def attacked(one: Victim) -> None:
            attack(one)
            one.assert_works()

        each(victims, attacked)

    test.__name__ = attack.__name__
    test.__doc__ = attack.__doc__
    return test


def each(victims: Sequence[Victim], action: Callable[[Victim], Any]) -> None:
    """Do something to all victims at once; fails with the names of the tiers at which it failed."""
    with ThreadPoolExecutor(len(victims)) as pool:
        running = {one.tier.name: pool.submit(action, one) for one in victims}
    failed = {name: error for name, future in running.items() if (error := future.exception()) is not None}
    if failed:
        said = "\n".join(f"{name}: {type(error).__name__}: {error}" for name, error in failed.items())
        pytest.fail(f"at {', '.join(failed)} of {', '.join(running)}:\n{said}")


def learn(one: Victim) -> None:
    """Let a victim know the prelude, whatever kernel it has by now."""
    one.run(PRELUDE)
