"""The watchdog, over real trees of processes: what it adds up, what it does not, whom it ends and what it says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from child_process import Child, forked, fresh
from dspy.primitives.code_interpreter import CodeExecutionError

from kernel_bridge import Confinement, KernelInterpreter
from kernel_bridge.process import watchdog
from kernel_bridge.process.watchdog import Bounds, Watchdog, descendants

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the watchdog reads /proc")

MIB = 2**20
GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
Wait = Callable[..., None]

# A root that does as the guardian does: it starts a tree, collects what ends, and stays until it is told to go.
ROOT = """
import ctypes, fcntl, mmap, os, socket, sys, threading
go = os.pipe()
def child(work):
    ready = os.pipe()  # its own: a grandchild would answer for its parent
    if os.fork() == 0:
        kept = work()
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
def touched(mib):
    block = bytearray(mib * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    return block
{body}
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tree() -> Iterator[Callable[[str], int]]:
    """`tree(body)` runs a root that has done `body`; gives its process number."""
    started: list[Child] = []

    def start(body: str) -> int:
        root = fresh(ROOT.format(body=body))
        started.append(root)
        root.wait_for("ready")
        return root.pid

    yield start
    for root in started:
        for pid in descendants(root.pid)[1:]:  # they hold its pipes open too
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with root:
            pass


def bounds(*, directories: tuple[Path, ...] = (), **given: int | None) -> Bounds:
    limits: dict[str, int | None] = {"memory_bytes": None, "processes": None, "disk_bytes": None, "open_files": None}
    return Bounds(**{**limits, **given}, directories=directories)  # type: ignore[arg-type]


def look(root: int, asked: Bounds) -> str | None:
    """What one look at a tree finds; nothing is ended."""
    dog = Watchdog(root, bounds())  # without a bound it does not look by itself, however long this takes
    dog._bounds = asked
    return dog._look(descendants(root))


def is_over(process: psutil.Process) -> bool:
    """Whether a process has ended, collected or not."""
    try:
        return not process.is_running() or process.status() in GONE
    except psutil.NoSuchProcess:  # collected between the two
        return True


def ended(root: int, asked: Bounds, wait_until: Wait) -> str:
    """The verdict of a watchdog that is let loose, once the whole tree but its root has ended."""
    family = [psutil.Process(pid) for pid in descendants(root)[1:]]
    dog = Watchdog(root, asked)
    try:
        wait_until(lambda: dog.verdict is not None, "a verdict")
    finally:
        dog.stop()
    wait_until(lambda: all(map(is_over, family)), "the end of the tree")
    assert not is_over(psutil.Process(root))
    assert dog.verdict is not None
    return dog.verdict


@pytest.mark.smoke
def test_the_memory_of_all_processes_together_is_bounded(tree: Callable[[str], int], wait_until: Wait) -> None:
    root = tree("for _ in range(4): child(lambda: touched(60))")
    assert look(root, bounds(memory_bytes=400 * MIB)) is None
    verdict = ended(root, bounds(memory_bytes=200 * MIB), wait_until)
    said = re.fullmatch(
        r"it was killed, because its processes together used (\d+) MiB of memory; 200 MiB are allowed", verdict
    )
    assert said is not None, verdict
    assert 240 <= int(said[1]) <= 400


def test_memory_that_processes_share_counts_once(tree: Callable[[str], int]) -> None:
    root = tree("block = touched(120)\nfor _ in range(4): child(lambda: None)")
    resident = sum(psutil.Process(pid).memory_info().rss for pid in descendants(root))
    assert resident > 500 * MIB
    assert look(root, bounds(memory_bytes=300 * MIB)) is None
    assert "MiB of memory; 100 MiB are allowed" in str(look(root, bounds(memory_bytes=100 * MIB)))


# A child whose first thread has ended, while another one has what it has; it tells of that when the first one is gone.
LEADERLESS = """
ready = os.pipe()
if os.fork() == 0:
    def live():
        global kept
        kept = {what}
        first = f"/proc/self/task/{{os.getpid()}}/stat"
        while open(first).read().rpartition(")")[2].split()[0] != "Z":
            pass
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    threading.Thread(target=live).start()
    ctypes.CDLL(None).syscall({{"x86_64": 60, "aarch64": 93}}[os.uname().machine], 0)
os.read(ready[0], 1)
"""


def test_a_process_whose_first_thread_has_ended_is_measured_by_the_others(
    tree: Callable[[str], int], wait_until: Wait
) -> None:
    root = tree(LEADERLESS.format(what="touched(120)"))
    assert look(root, bounds(memory_bytes=300 * MIB)) is None
    assert "MiB of memory; 100 MiB are allowed" in ended(root, bounds(memory_bytes=100 * MIB), wait_until)


def test_processes_whose_first_threads_have_ended_are_not_taken_for_one(tree: Callable[[str], int]) -> None:
    """What the first threads have then is the same: nothing."""
    root = tree(2 * LEADERLESS.format(what="touched(120)"))
    assert look(root, bounds(memory_bytes=400 * MIB)) is None
    assert "MiB of memory; 200 MiB are allowed" in str(look(root, bounds(memory_bytes=200 * MIB)))


# Without root's rights nobody may list the open files of a thread that has ended.
LOOKS_AS_ANOTHER_USER = """
import ctypes, os, platform, signal, threading, time
from kernel_bridge.process.resource_use import Descriptors
if os.getuid() == 0:
    os.setresgid(54321, 54321, 54321)
    os.setresuid(54321, 54321, 54321)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: else no process of this user could be looked at
child = os.fork()
if child == 0:
    threading.Thread(target=time.sleep, args=(600,)).start()
    ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
try:
    while b"State:\\tZ" not in open(f"/proc/{child}/task/{child}/status", "rb").read():
        time.sleep(0.01)
    try:
        os.listdir(f"/proc/{child}/task/{child}/fd")
    except PermissionError:
        print("hidden")
    print(Descriptors([child]).count() >= 3)
finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_first_thread_that_has_ended_hides_nothing_from_a_watchdog_without_rights() -> None:
    with forked(LOOKS_AS_ANOTHER_USER) as child:
        ended = child.ended()
    assert ended.out == "hidden\nTrue\n", ended.err


@pytest.mark.parametrize("own_table", ["False", "ctypes.CDLL(None).unshare(0x400)"])
def test_files_that_only_a_later_thread_has_open_count(
    tree: Callable[[str], int], tmp_path: Path, own_table: str
) -> None:
    hide = f"open({str(tmp_path / 'gone')!r}, 'wb', buffering=0)"
    keep = f"[{own_table}, {hide}]; kept[1].write(os.urandom(3 * 2**20)); os.unlink(kept[1].name)"
    root = tree(LEADERLESS.format(what=keep))
    found = look(root, bounds(disk_bytes=2 * MIB, directories=(tmp_path,)))
    assert re.fullmatch(r"it was killed, because its files take [34] MiB; 2 MiB are allowed", str(found)), found


def test_a_child_that_has_its_parents_memory_until_it_runs_something_else_counts_once(
    tree: Callable[[str], int],
) -> None:
    # The parent stands still and is never to go on.
    root = tree("""
ready = os.pipe()
if os.fork() == 0:
    kept = touched(120)
    ctypes.PyDLL(None).vfork()
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    os._exit(0)
os.read(ready[0], 1)
""")
    assert sum(psutil.Process(pid).memory_info().rss for pid in descendants(root)) > 250 * MIB
    assert look(root, bounds(memory_bytes=200 * MIB)) is None


def test_what_the_system_holds_for_sockets_is_memory_too(tree: Callable[[str], int]) -> None:
    root = tree("child(lambda: [socket.socketpair() for _ in range(450)])")
    found = look(root, bounds(memory_bytes=150 * MIB))
    said = r"together used \d+ MiB of memory, \d+ MiB of it for sockets, pipes, epolls and mappings; 150"
    assert re.search(said, str(found)), found


def test_what_the_system_holds_for_mappings_is_memory_too(tree: Callable[[str], int]) -> None:
    root = tree("""
kept = mmap.mmap(-1, 50_000 * 4096)
first = ctypes.addressof(ctypes.c_char.from_buffer(kept))
for at in range(0, 50_000, 2): ctypes.CDLL(None).mprotect(ctypes.c_void_p(first + at * 4096), 4096, 1)
for _ in range(4): child(lambda: None)
""")
    assert look(root, bounds(memory_bytes=400 * MIB)) is None
    found = look(root, bounds(memory_bytes=64 * MIB))
    assert re.search(r"together used \d+ MiB of memory, [56]\d MiB of it for sockets", str(found)), found


def test_a_process_that_is_gone_before_it_is_measured_is_looked_for_soon(tree: Callable[[str], int]) -> None:
    root = tree("child(lambda: None)")
    dog = Watchdog(root, bounds())
    dog._bounds = bounds(memory_bytes=400 * MIB)
    usual = dog._wait
    assert dog._look(descendants(root)) is None
    assert dog._wait == usual
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        pass
    assert dog._look([*descendants(root), other.pid]) is None
    assert dog._wait < usual / 4


def test_locks_are_counted(tree: Callable[[str], int], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    lock = "fcntl.lockf(kept[at % 50], fcntl.LOCK_EX, 1, at)"
    code = f"""
kept = [open(f"{tmp_path / "file"}{{n}}", "w") for n in range(50)]
for at in range(10_500): {lock}
"""
    root = tree(code)
    found = look(root, bounds(open_files=1000))
    assert re.fullmatch(r"it was killed, because it had \d+ file locks; 10000 are allowed", str(found)), found


def test_descriptors_that_were_sent_and_not_received_are_counted(tree: Callable[[str], int]) -> None:
    """They take of what the user has only so many of, and what they are of is found by nobody."""
    root = tree("""
import array
kept = socket.socketpair()
sent = [fd for _ in range(40) for fd in os.pipe()]
kept[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))])
for fd in sent: os.close(fd)
""")
    found = look(root, bounds(open_files=1000))
    assert found == "it was killed, because it had 80 descriptors on their way in sockets; 64 are allowed"


def test_processes_and_threads_of_the_whole_tree_are_counted(tree: Callable[[str], int], wait_until: Wait) -> None:
    threads = "[threading.Thread(target=os.read, args=(go[0], 1), daemon=True).start() for _ in range(9)]"
    root = tree(f"for _ in range(4): child(lambda: {threads})")
    assert look(root, bounds(processes=41)) is None
    verdict = ended(root, bounds(processes=20), wait_until)
    assert verdict == "it was killed, because it had 41 processes and threads; 20 are allowed"


def test_grandchildren_count_and_are_ended(tree: Callable[[str], int], wait_until: Wait) -> None:
    root = tree("child(lambda: [child(lambda: touched(80)), child(lambda: touched(80))])")
    assert len(descendants(root)) == 4
    assert "memory; 100 MiB" in ended(root, bounds(memory_bytes=100 * MIB), wait_until)


def test_files_are_counted_by_what_they_take(tree: Callable[[str], int], tmp_path: Path, wait_until: Wait) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "file").write_bytes(os.urandom(3 * MIB))  # zeros take nothing on some file systems
    os.link(tmp_path / "deep" / "er" / "file", tmp_path / "again")
    with (tmp_path / "holes").open("wb") as sparse:
        sparse.truncate(2**30)
    (tmp_path / "elsewhere").symlink_to("/usr")
    root = tree("child(lambda: None)")
    assert look(root, bounds(disk_bytes=4 * MIB, directories=(tmp_path,))) is None
    verdict = ended(root, bounds(disk_bytes=2 * MIB, directories=(tmp_path,)), wait_until)
    assert verdict == "it was killed, because its files take 3 MiB; 2 MiB are allowed"


def test_use_that_is_hardly_over_the_limit_does_not_read_like_the_limit(
    tree: Callable[[str], int], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(MIB + 4096))
    taken = (tmp_path / "file").stat().st_blocks * 512  # in pages or blocks of whatever size they have here
    found = look(tree("child(lambda: None)"), bounds(disk_bytes=taken - 4096, directories=(tmp_path,)))
    said = re.fullmatch(r"it was killed, because its files take ([\d.]+) MiB; ([\d.]+) MiB are allowed", str(found))
    assert said is not None, found
    assert 0 < float(said[1]) - float(said[2]) < 0.02


def test_files_without_a_name_count_while_they_are_open(tree: Callable[[str], int], tmp_path: Path) -> None:
    hidden = f"f = open({str(tmp_path / 'gone')!r}, 'wb')\nf.write(os.urandom(3 * 2**20)); f.flush(); os.unlink(f.name)"
    root = tree(f"def hide():\n    global f\n    {hidden.replace(chr(10), chr(10) + '    ')}\nchild(hide)")
    assert os.listdir(tmp_path) == []
    found = look(root, bounds(disk_bytes=2 * MIB, directories=(tmp_path,)))
    assert re.fullmatch(r"it was killed, because its files take [34] MiB; 2 MiB are allowed", str(found)), found


def test_files_without_a_name_count_while_they_are_mapped(tree: Callable[[str], int], tmp_path: Path) -> None:
    path = str(tmp_path / "gone")
    hide = f"""
    global kept
    file = os.open({path!r}, os.O_RDWR | os.O_CREAT)
    os.write(file, os.urandom(3 * 2**20))
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    assert libc.mmap(None, ctypes.c_size_t(4096), 1, 2, file, ctypes.c_long(0)) != 2**64 - 1
    os.close(file)
    os.unlink({path!r})
"""
    root = tree(f"def hide():{hide}child(hide)")
    found = str(look(root, bounds(disk_bytes=2 * MIB, directories=(tmp_path,))))
    if os.geteuid() == 0:
        assert re.fullmatch(r"it was killed, because its files take [34] MiB; 2 MiB are allowed", found), found
    else:
        assert "kept mapped, which hides the file's size" in found


def test_names_without_end_are_refused(tree: Callable[[str], int], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for number in range(10_001):
        os.link(tmp_path / "file", tmp_path / str(number))
    found = look(tree("child(lambda: None)"), bounds(disk_bytes=2**20, directories=(tmp_path,)))
    assert found == "it was killed, because it made more than 10000 files"


def test_directories_without_end_are_refused(tree: Callable[[str], int], tmp_path: Path) -> None:
    (tmp_path / "/".join(["d"] * 70)).mkdir(parents=True)
    found = look(tree("child(lambda: None)"), bounds(disk_bytes=2**30, directories=(tmp_path,)))
    assert found == "it was killed, because it made directories more than 64 deep"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is hidden from root")
def test_a_directory_that_is_hidden_is_refused(tree: Callable[[str], int], tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    found = look(tree("child(lambda: None)"), bounds(disk_bytes=2**30, directories=(tmp_path,)))
    assert found == "it was killed, because it hid a directory from the watchdog"


def test_open_files_of_all_processes_are_counted(tree: Callable[[str], int], wait_until: Wait) -> None:
    root = tree("for _ in range(3): child(lambda: [os.dup(0) for _ in range(40)])")
    assert look(root, bounds(open_files=40)) is None
    verdict = ended(root, bounds(open_files=10), wait_until)
    assert verdict.startswith("it was killed, because its processes together had 1")
    assert verdict.endswith(" open files; 80 are allowed")


def test_without_bounds_nobody_watches(tree: Callable[[str], int]) -> None:
    dog = Watchdog(tree("child(lambda: None)"), bounds())
    assert dog not in watchdog._looks._due
    dog.stop()


EATERS = """
import subprocess, sys
code = "b = bytearray(90 * 2**20); b[::4096] = b'x' * len(b[::4096]); print(1, flush=True); input()"
eaters = [subprocess.Popen([sys.executable, '-c', code], stdin=-1, stdout=-1) for _ in range(6)]
for eater in eaters: eater.stdout.readline()
import time; time.sleep(60)
"""


def test_a_kernel_whose_processes_take_too_much_memory_is_told_so() -> None:
    asked = Confinement(memory_bytes=300 * MIB)
    with KernelInterpreter(confinement=asked) as interpreter:
        interpreter.execute("kept = 1")
        with pytest.raises(CodeExecutionError, match=r"together used [\d.]+ MiB of memory; 300[.0]* MiB are"):
            interpreter.execute(EATERS)
        assert interpreter.execute("kept") == "1"


def test_a_kernel_whose_files_take_too_much_is_told_so() -> None:
    # Where a file system of its own does not bound it: the files that the host made for it.
    with (
        tempfile.TemporaryDirectory() as root,
        KernelInterpreter(confinement=Confinement(scratch_bytes=8 * MIB), runtime_dir=root) as interpreter,
    ):
        interpreter.execute("kept = 1")
        fill = "import ipykernel.kernelapp, os, time\napp = ipykernel.kernelapp.IPKernelApp.instance()\n"
        fill += "place = os.path.dirname(app.connection_file)\n"
        fill += "for n in ('transcript', 'progress'): open(f'{place}/{n}', 'r+b').write(os.urandom(6 * 2**20))\n"
        fill += "time.sleep(60)"
        with pytest.raises(CodeExecutionError, match=r"its files take [\d.]+ MiB; 8[.0]* MiB are allowed"):
            interpreter.execute(fill)
        assert interpreter.execute("kept") == "1"
