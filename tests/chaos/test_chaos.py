"""Chaos: an optimization is killed over and over and ends as if nothing had happened.

`CHAOS_KILLS=200 pytest tests/chaos` kills hosts so often, and the rest in proportion; `CHAOS_SEED=...` repeats a run
with the seed that it printed: the same plans, though not the same microseconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from chaos_rig import HERE, Optimization, process_with_disk, seen_by
from child_process import forked, output_of
from private_disk import fill

KILLS = int(os.environ.get("CHAOS_KILLS", "6"))  # of hosts, in all; of these so many together with kernels:
WITH_KERNELS = max(2, KILLS // 6)
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL"),
    pytest.mark.timeout(120 + 10 * KILLS),
]


@pytest.fixture(scope="module")
def places() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name).resolve()


@pytest.fixture(scope="module")
def undisturbed(places: Path) -> Optimization:
    one = Optimization(places / "undisturbed")
    assert one.attempt() == 0
    told = one.told()
    assert told["error"] is None, told["error"][2]
    assert told["left"] == []
    one.check_clean()
    one.look(None)
    assert one.accounts.finished == one.accounts.stored
    return one


def test_the_undisturbed_optimization_is_worth_disturbing(undisturbed: Optimization) -> None:
    result, ticks = undisturbed.told()["result"], undisturbed.told()["ticks"]
    assert (len(result["trial_logs"]), result["best_score"]) == (18, 100.0)
    assert {run["state"] for run in result["trial_logs"]} == {"finished"}
    assert ticks["statement"] > 500
    # With the final check and the test.
    assert (ticks["finished"], ticks["turn"], ticks["prompt"]) == (99 + 5 + 2 * 4, 9, 4)
    assert undisturbed.accounts.charged == {"evaluate": 77, "validate": 5, "llm_query": 4, "final_check": 5}


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    print(f"repeat with CHAOS_SEED={SEED} CHAOS_KILLS={KILLS}")
    return random.Random(f"{SEED} {request.node.name}")


class Tally:
    """What chaos did, to be printed."""

    def __init__(self) -> None:
        self.kills = self.compiles = self.attempts = self.again = self.kernels = 0

    def add(self, one: Optimization) -> None:
        self.compiles += 1
        self.attempts += one.attempts
        self.kernels += one.kernels
        self.again += one.again

    def __str__(self) -> str:
        return (
            f"{self.kills} kills of the host and {self.kernels} of kernels in {self.compiles} optimizations with "
            f"{self.attempts} processes; {self.again} examples under way were run again"
        )


def killed_at(rng: random.Random, ticks: int) -> dict[str, Any]:
    """A plan: at some tick at once, so in the middle of a transaction too, or a little later, wherever it is then."""
    return {"kill_at": rng.randint(1, ticks // 3), "delay": rng.choice([0.0, 0.0, rng.random() * 0.05])}


def disturb(
    undisturbed: Optimization,
    places: Path,
    rng: random.Random,
    *,
    kills: int,
    kernels: bool = False,
) -> Tally:
    """Kill hosts until there were enough of it, over as many optimizations as that takes; each is let end."""
    ticks = undisturbed.told()["ticks"]
    tally = Tally()
    while tally.kills < kills:
        one = Optimization(places / f"c{rng.randrange(10**9)}")
        ended = False
        while not ended:
            enough = tally.kills >= kills
            from_outside = not enough and rng.random() < 0.25
            plan = {} if enough or from_outside else killed_at(rng, ticks["all"])
            if kernels:
                plan["kill_kernel_at"] = [rng.randint(1, ticks["agent"] // 4)]
            attempt = one.start(**plan)
            if from_outside:
                time.sleep(rng.random() * 1.5)
                attempt.send_signal(signal.SIGKILL)
            ended = one.wait() == 0
            if not ended:
                tally.kills += 1
                one.look(undisturbed.accounts.finished)
                if rng.random() < 0.2:
                    one.check_best_program()
        one.check_ended(undisturbed)
        tally.add(one)
        one.remove()
    print(tally)
    return tally


def test_a_host_that_is_killed_over_and_over_comes_to_the_same_end(
    undisturbed: Optimization, places: Path, rng: random.Random
) -> None:
    tally = disturb(undisturbed, places, rng, kills=KILLS - WITH_KERNELS)
    assert tally.kills == KILLS - WITH_KERNELS
    assert tally.again > 0 or KILLS < 24  # of so many some come in the middle of an example


def test_a_host_and_its_kernels_that_are_killed_come_to_the_same_end(
    undisturbed: Optimization, places: Path, rng: random.Random
) -> None:
    tally = disturb(undisturbed, places, rng, kills=WITH_KERNELS, kernels=True)
    assert tally.kills == WITH_KERNELS


def test_kernels_that_are_killed_under_a_host_that_goes_on_change_nothing(
    undisturbed: Optimization, places: Path, rng: random.Random
) -> None:
    agent = undisturbed.told()["ticks"]["agent"]
    kills = 0
    while kills < max(4, KILLS // 4):
        one = Optimization(places / f"k{rng.randrange(10**9)}")
        assert one.attempt(kill_kernel_at=sorted(rng.sample(range(1, agent), 4))) == 0
        kills += one.kernels
        # Examples under way when a kernel dies are finished and kept by the host: not one is run again.
        one.check_ended(undisturbed)
        assert one.again == 0
        one.remove()
    print(f"{kills} kernels killed")


# the store is locked by another program


def locked(one: Optimization, rng: random.Random, *, busy_seconds: float, release: bool) -> None:
    """Run an attempt while another process holds the write lock: for a moment, or until the attempt has ended."""
    for name in ("lock-it", "locked"):
        (one.directory / name).unlink(missing_ok=True)
    one.start(lock_at=rng.randint(1, 80), busy_seconds=busy_seconds)
    deadline = time.monotonic() + 100
    while not (one.directory / "lock-it").exists():
        assert time.monotonic() < deadline, one.output()
        time.sleep(0.002)
    path = one.store()
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        (one.directory / "locked").touch()
        if release:
            time.sleep(rng.random() * 0.3)
        else:
            assert one.wait() == 0
        other.execute("ROLLBACK")
    if release:
        assert one.wait() == 0


def test_a_store_that_another_program_keeps_busy_for_a_while_is_waited_for(
    undisturbed: Optimization, places: Path, rng: random.Random
) -> None:
    one = Optimization(places / "busy")
    locked(one, rng, busy_seconds=60.0, release=True)
    one.check_ended(undisturbed)
    one.remove()


def test_a_store_that_another_program_keeps_busy_for_too_long_stops_a_compile_that_can_be_resumed(
    undisturbed: Optimization, places: Path, rng: random.Random
) -> None:
    one = Optimization(places / "busy-long")
    locked(one, rng, busy_seconds=0.2, release=False)
    one.check_stopped(undisturbed, "another program has kept it locked")
    assert one.attempt() == 0
    one.check_ended(undisturbed)
    one.remove()


# the disk is full

DISK_BYTES = 12 << 20


def no_disk(directory: Path) -> str | None:
    """Why this user can have no small disk; None: it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    probe = [sys.executable, str(HERE / "private_disk.py"), str(directory)]
    tried = subprocess.run(probe, capture_output=True, text=True, timeout=60, check=False)
    return tried.stderr.strip() if tried.returncode else None


@pytest.fixture
def disk(places: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=places, prefix="d") as name:
        if (why := no_disk(Path(name))) is not None:
            pytest.skip(why)
        yield Path(name)


def test_a_disk_that_is_full_over_and_over_stops_a_compile_that_comes_to_the_same_end(
    undisturbed: Optimization, places: Path, rng: random.Random, disk: Path
) -> None:
    with contextlib.closing(process_with_disk(disk, DISK_BYTES)) as process:
        one = Optimization(places / "full", (disk, process))
        full = 0
        for number in range(max(3, KILLS // 8)):
            filler = fill(str(seen_by(process, disk)), leave=rng.randrange(1_200_000 if number % 2 else 100_000))
            assert one.attempt() == 0
            os.unlink(filler)
            if one.told()["error"] is None:
                break
            full += 1
            check_full(one, undisturbed)
        if one.told()["error"] is not None:
            assert one.attempt() == 0
        one.check_ended(undisturbed)
        assert full > 0
        print(f"full {full} times")
        one.remove()


MAKES_STORES = """
import sys, pathlib
import private_disk
private_disk.enter(sys.argv[1], 4 << 20)
from rlmoptimizer.errors import StoreCorrupt
from rlmoptimizer.store.run_store import RunStore
disk = pathlib.Path(sys.argv[1])
for leave in range(0, 1 << 17, 4096):
    filler = private_disk.fill(sys.argv[1], leave=leave)
    try:
        RunStore.create_in(disk / str(leave)).close()
        print("made")
    except StoreCorrupt as error:
        print(error)
    pathlib.Path(filler).unlink()
"""


def test_however_little_room_there_is_a_store_that_cannot_be_made_says_that_the_disk_is_full(disk: Path) -> None:
    out = output_of(forked(MAKES_STORES, disk))
    *told, last = out.splitlines()
    assert last == "made"
    refused = [line for line in told if line != "made"]
    assert len(refused) > 10
    assert [line for line in refused if "disk is full. Free the disk" not in line] == []


def check_full(one: Optimization, undisturbed: Optimization) -> None:
    message = one.told()["error"][1]
    said = [text for text in ("database or disk is full", "No space left on device") if text in message]
    one.check_stopped(undisturbed, said[0] if said else "disk is full")


def test_a_full_disk_is_skipped_only_where_no_disk_can_be_had(places: Path) -> None:
    root = sys.platform.startswith("linux") and os.geteuid() == 0
    may = Path("/proc/sys/user/max_mnt_namespaces")
    if root and may.exists() and int(may.read_text()) > 0 and "cap_sys_admin" in capabilities():
        assert no_disk(places) is None


def capabilities() -> set[str]:
    """Of what matters here: whether this process may mount."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)
    return {"cap_sys_admin"} if effective & (1 << 21) else set()
