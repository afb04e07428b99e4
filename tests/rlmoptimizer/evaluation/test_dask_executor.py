"""Evaluations on a Dask cluster of two worker processes, one of which is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import pytest
import toy
from deadly import Deadly, Waits
from distributed import Client, LocalCluster
from executor_runs import Evaluated, Provider, provider

from rlmoptimizer import InvalidSetup, RLMDocstringOptimizer

RIGS = Path(__file__).resolve().parents[2] / "rigs"
# However slow the machine is, no worker that starts anew is given up, and one that dies is noticed at once.
SETTINGS = {
    "distributed.deploy.lost-worker-timeout": "600s",
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.memory.terminate": False,
}


@pytest.fixture(scope="module", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with dask.config.set({**SETTINGS, "temporary-directory": str(tmp_path_factory.mktemp("dask"))}):
        yield


@pytest.fixture(scope="module")
def served() -> Iterator[Provider]:
    with provider() as at:
        yield at


def local_cluster(workers: int) -> LocalCluster:
    return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=50)


@pytest.fixture(scope="module")
def nannies() -> Iterator[Client]:
    """A client of a cluster that starts its workers anew."""
    with local_cluster(2) as cluster, Client(cluster) as client:
        yield client


def killed_in_the_middle(
    served: Provider, client: Client, file: Path, wait_until: Callable[..., None]
) -> Evaluated:
    with ThreadPoolExecutor(1) as caller:
        run = caller.submit(served.evaluate, Waits(file, "message 5 "), executor=client.get_executor())
        wait_until(lambda: file.exists() or run.done(), "the example is under way")
        os.kill(int(file.read_text()), signal.SIGKILL)
        return run.result()


def test_workers_give_the_same_results_and_dollars_as_threads_also_when_one_is_killed(
    served: Provider, nannies: Client, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    here = served.evaluate()
    assert served.evaluate(executor=nannies.get_executor()) == here
    assert killed_in_the_middle(served, nannies, tmp_path / "pid", wait_until) == here


def test_an_example_that_kills_each_worker_is_a_failed_row(served: Provider, nannies: Client, tmp_path: Path) -> None:
    metric = Deadly(tmp_path, "message 2 ", times=9)
    there = served.evaluate(metric, rows=4, executor=nannies.get_executor())
    assert there.kinds == [None, None, "worker_lost", None]
    assert metric.deaths < 9  # and not for ever


def test_workers_without_a_nanny_stay_dead_and_the_others_do_the_work(
    served: Provider, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    here = served.evaluate()
    with local_cluster(0) as cluster, Client(cluster) as client:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny"]
        options = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path / "scratch")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(RIGS), *sys.path])}
        workers = [
            subprocess.Popen([*command, *options], env=environment, stderr=subprocess.DEVNULL) for _ in range(2)
        ]
        try:
            client.wait_for_workers(2)
            assert killed_in_the_middle(served, client, tmp_path / "pid", wait_until) == here
            killed = [worker.pid for worker in workers if worker.poll() is not None]
            assert killed == [int((tmp_path / "pid").read_text())]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def test_workers_in_threads_of_this_process_are_counted_too(served: Provider) -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        assert served.evaluate(executor=client.get_executor()) == served.evaluate()
        optimizer: Any = RLMDocstringOptimizer
        with pytest.raises(InvalidSetup, match=r"of this Client, give \.get_executor\(\)"):
            optimizer(root_lm=toy.sub_lm(), executor=client)
