"""Reading a part of a large store reads that part: bytes are counted by the system, not by the clock."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import UnitLedger
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

EXAMPLES = 2000
MIDDLE = EXAMPLES // 2

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/io", os.R_OK), reason="the system does not count what a process reads"
)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "bench" / "store.py"
    spec = importlib.util.spec_from_file_location("bench_store", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stores(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store whose run has ended, and one as a killed process leaves it; 40 MB each."""
    directory = tmp_path_factory.mktemp("stores")
    paths = {"ended": directory / "ended.sqlite", "cut": directory / "cut.sqlite"}
    bench.filled(paths["ended"], EXAMPLES)
    bench.filled(paths["cut"], EXAMPLES, ends=False)
    return paths


def share_read(bench: ModuleType, path: Path, read: Callable[[RunStore], object]) -> float:
    """Bytes read, as a share of the file."""
    bench.cost_of(path, read)  # what is imported at the first call is not the store's
    _, count = bench.cost_of(path, read)
    return count / path.stat().st_size


# A row without its details has about 50 bytes beside the 20,000 of its trace.
PARTS: dict[str, tuple[str, Callable[[RunStore], Any], float]] = {
    "one run that ended": ("ended", lambda store: store.run("r1"), 0.005),
    "all runs": ("ended", lambda store: store.runs(), 0.005),
    "one run under way": ("cut", lambda store: store.run("r1"), 0.01),
    "the units that are spent": ("ended", lambda store: UnitLedger(EXAMPLES, store), 0.005),
    "the dollars that are spent": ("ended", lambda store: CostLedger(1.0, store), 0.01),
    "the prompts": ("ended", lambda store: (store.prompts(), store.candidates()), 0.005),
    "which examples failed": ("ended", lambda store: store.failed_ids("r1"), 0.02),
    "the kinds of errors": ("ended", lambda store: store.error_kinds("r1"), 0.01),
    "what is still to be done": ("cut", lambda store: store.planned_ids("r1"), 0.01),
    "what a request goes on with": ("cut", lambda store: store.find_runs("train", {"a": "p"}, {"limit": None}), 0.01),
    "what could be taken over": ("ended", lambda store: store.spare_rows("train", {"a": "p"}), 0.02),
    "the first 25 examples": ("ended", lambda store: store.examples("r1", limit=25), 0.03),
    "25 in the middle": ("ended", lambda store: store.examples("r1", offset=MIDDLE, limit=25), 0.03),
    "25 by their ids": ("ended", lambda store: store.examples("r1", ids=[str(MIDDLE + n) for n in range(25)]), 0.03),
    "25 of a run under way": ("cut", lambda store: store.examples("r1", offset=MIDDLE, limit=25), 0.03),
    "one of them": ("ended", lambda store: store.examples("r1", ids=["77"]), 0.005),
}


@pytest.mark.parametrize("name", PARTS)
def test_reading_a_part_does_not_read_the_rest(bench: ModuleType, stores: dict[str, Path], name: str) -> None:
    which, read, most = PARTS[name]
    assert share_read(bench, stores[which], read) < most


def test_bytes_are_counted_at_all_and_reading_everything_reads_the_file(
    bench: ModuleType, stores: dict[str, Path]
) -> None:
    assert share_read(bench, stores["ended"], lambda store: store.examples("r1")) > 0.9


def test_the_parts_are_the_right_ones(stores: dict[str, Path]) -> None:
    with StoreReader.open(stores["ended"]) as store:
        assert [one.example_id for one in store.examples("r1", offset=MIDDLE, limit=2)] == ["1001", "1002"]
        assert len(store.examples("r1", offset=EXAMPLES - 5, limit=25)) == 5
        record = store.run("r1")
    assert (record.evaluated_count, record.score, record.passed_count) == (EXAMPLES, 0.5, 0)


def test_appending_to_a_large_run_reads_none_of_it(bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    bench.filled(path, EXAMPLES // 4, ends=False)
    with RunStore.open(path) as store:
        store.append("r1", bench.traced("1"))
        before = bench.bytes_read()
        store.append("r1", bench.traced("2"))
        assert (bench.bytes_read() - before) / path.stat().st_size < 0.02
