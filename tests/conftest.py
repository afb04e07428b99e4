"""What every test gets: a private place for temporary files, and a check that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

import psutil
import pytest
from child_process import warm_process
from hypothesis import HealthCheck, settings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_GRACE_SECONDS = 60.0  # how long something that is ending may take; only a leak ever waits this long
_POLL_SECONDS = 0.01
# Kept for the life of the process by the standard library (multiprocessing) and by DSPy.
_NOT_OURS = ("pymp-", "dspy-cache")
_LONGEST_TMP = 36  # characters; sockets some directories below it must have paths of at most 107

# How long one example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("however slow", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("however slow")

_private_tmp: str | None = None

_HAS_MLFLOW = importlib.util.find_spec("mlflow") is not None
_HAS_DASK = importlib.util.find_spec("distributed") is not None
collect_ignore = [
    *([] if _HAS_MLFLOW else ["with_mlflow"]),
    *([] if _HAS_DASK else ["rlmoptimizer/evaluation/test_dask_executor.py"]),
]


def pytest_report_header() -> list[str]:
    return [
        *([] if _HAS_MLFLOW else ["left out: tests/with_mlflow, which needs the extra `mlflow`"]),
        *([] if _HAS_DASK else ["left out: test_dask_executor.py, which needs the extra `dask`"]),
    ]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Of `-n auto`: five workers for two cores, because tests wait more than they compute."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else -(-5 * (os.cpu_count() or 1) // 2)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Each worker takes tests that follow one another, so that few modules start their kernel in several workers."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Of the workers one at a time imports a test module: the first keeps what pytest makes of it, which takes longer
    than all the rest of collecting, and the others read that.
    """
    if not isinstance(collector, pytest.Module) or fcntl is None:
        return (yield)
    with collector.path.open("rb") as module:
        fcntl.flock(module, fcntl.LOCK_EX)
        return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Give this process (each xdist worker has its own) a temporary directory of its own, with a short path.

    Whatever is found in it afterwards was left by tests of this process; a unix socket's path must fit in 107 bytes.
    """
    global _private_tmp
    # A shell that starts a job in the background lets it ignore Ctrl-C, and `nohup` the end of the terminal, and so all
    # that it starts; some tests send them.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN:
        signal.signal(hangup, signal.SIG_DFL)
    spreads_to_workers = bool(getattr(config.option, "numprocesses", None))
    if spreads_to_workers or _private_tmp is not None:
        return
    gc.disable()  # until all tests are collected: hardly anything is garbage before
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # tmp_path stays where pytest keeps it
    short = len(tempfile.gettempdir()) <= _LONGEST_TMP or not os.access("/tmp", os.W_OK)
    _private_tmp = tempfile.mkdtemp(prefix="rt-", dir=None if short else "/tmp")
    os.environ["TMPDIR"] = _private_tmp
    os.environ.pop("XDG_RUNTIME_DIR", None)  # so that sessions are kept below TMPDIR
    # DSPy reads this when it is imported; answers cached by an earlier run must not answer for this one.
    os.environ["DSPY_CACHEDIR"] = os.path.join(_private_tmp, "dspy-cache")
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would look for a newer one in the network, three times
    tempfile.tempdir = None  # read TMPDIR afresh
    # After multiprocessing has removed its own directory from there, which it does at the exit with a priority of -100.
    Finalize(None, shutil.rmtree, (_private_tmp,), {"ignore_errors": True}, exitpriority=-200)


def pytest_collection_finish() -> None:
    gc.freeze()  # what lives to the end need not be looked through again and again
    gc.enable()


@dataclass(frozen=True, slots=True)
class _Running:
    """What belongs to this process at one moment."""

    children: frozenset[psutil.Process]
    threads: frozenset[threading.Thread]  # without daemons: those end with the process
    files: frozenset[str]  # names in the private temporary directory

    @classmethod
    def now(cls) -> _Running:
        return cls(_children(), _threads(), _files())

    def left_by(self, before: _Running) -> list[str]:
        """One line for each thing that runs or exists now and did not before."""
        return [
            *(_describe_process(child) for child in self.children - before.children),
            *(f"thread {thread.name} ({thread!r})" for thread in self.threads - before.threads),
            *(f"temporary file {name}" for name in sorted(self.files - before.files)),
        ]


def _children() -> frozenset[psutil.Process]:
    # Descendants, not only children: a kernel's own processes must go with it. A zombie no longer runs, and the
    # standard library keeps its resource tracker and fork server for the life of the process, as we keep ours.
    warm = warm_process().pid if warm_process.cache_info().currsize else None
    found: set[psutil.Process] = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if (
                child.pid != warm
                and child.status() != psutil.STATUS_ZOMBIE
                and "from multiprocessing" not in " ".join(child.cmdline())
            ):
                found.add(child)
        except psutil.NoSuchProcess:
            continue
    return frozenset(found)


def _threads() -> frozenset[threading.Thread]:
    return frozenset(thread for thread in threading.enumerate() if not thread.daemon and thread.is_alive())


def _files() -> frozenset[str]:
    assert _private_tmp is not None
    names: list[str] = []
    for name in os.listdir(_private_tmp):
        if name.startswith("kernel_bridge-"):  # this user's directory of sessions stays, the sessions in it may not
            with contextlib.suppress(FileNotFoundError):  # or the one of a trial, which is just being removed
                names += [f"{name}/{session}" for session in os.listdir(os.path.join(_private_tmp, name))]
        elif not name.startswith(_NOT_OURS):
            names.append(name)
    return frozenset(names)


def _describe_process(process: psutil.Process) -> str:
    try:
        return f"process {process.pid} ({process.status()}): {' '.join(process.cmdline())[:300]}"
    except psutil.NoSuchProcess:
        return f"process {process.pid} (just ended)"


def _check_nothing_left(before: _Running, who: str) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    while left := _Running.now().left_by(before):
        if time.monotonic() > deadline:
            pytest.fail(f"{who} left behind after {_GRACE_SECONDS:.0f} s:\n  " + "\n  ".join(left), pytrace=False)
        time.sleep(_POLL_SECONDS)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_by_the_session() -> Iterator[None]:
    before = _Running.now()
    yield
    if warm_process.cache_info().currsize:
        warm_process().close()
    _check_nothing_left(before, "the session")


@pytest.fixture(scope="module", autouse=True)
def nothing_left_by_the_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the last test of a module whose tests leave a child process, a thread or a temporary file.

    Fixtures of the session are not to be set up within: what they hold would be the module's.
    """
    before = _Running.now()
    yield
    _check_nothing_left(before, f"a test of {request.node.name}; LEAKS=test finds out which, it")


@pytest.fixture(autouse=True)
def nothing_left_by_the_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same for each test, when the environment has LEAKS=test: it takes longer."""
    if os.environ.get("LEAKS") != "test":
        yield
        return
    before = _Running.now()
    yield
    _check_nothing_left(before, request.node.name)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """`wait_until(predicate, what, seconds=60)`: returns once the predicate holds, fails with `what` if it never does.

    For facts that nothing announces (a process that is gone, a file that was removed); wait on events otherwise.
    """

    def wait(predicate: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not predicate():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:.0f} s: {what}")
            time.sleep(_POLL_SECONDS)

    return wait


@pytest.fixture
def plain_repl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent of `toy` works in DSPy's own REPL instead of a kernel: another process too, which starts in a tenth of
    the time. For whole compiles that are to show what the host does, and in which the kernel has no part.
    """
    import dspy
    import toy

    monkeypatch.setattr(toy, "KERNEL", dspy.LocalInterpreter)


@pytest.fixture(scope="session")
def project_root() -> Path:
    return Path(__file__).resolve().parent.parent
