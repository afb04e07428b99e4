"""Attacks on what there is only so much of but disk: memory, processes, descriptors, time, and the host's patience.

Every one of them is bounded by itself as well, so that a fence that fails costs this machine little.
"""

from __future__ import annotations

import platform
import re
import struct

import pytest
from rig import Tier
from victim import DEATH, KILLED, MIB, WAIT, Victim, at_every_tier, victim

# -- memory ------------------------------------------------------------------------------------------------------------

_TOO_LARGE = {
    "bytes": "x = bytearray(500 * 2**20)",
    "text": "x = 'x' * (600 * 2**20)",
    "integer": "x = 1 << (8 * 500 * 2**20)",
    "array": "os.environ['OPENBLAS_NUM_THREADS'] = '1'\nimport numpy\nx = numpy.ones(500 * 2**20 // 8)",
    "mapping": "x = mmap.mmap(-1, 5 * 2**30)",
    "heap": """
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
if not libc.malloc(500 * 2**20): raise MemoryError
""",
}


@at_every_tier
def test_more_memory_in_one_piece_than_there_is(bounded: Victim) -> None:
    for kind, code in _TOO_LARGE.items():
        told = bounded.fate(f"x = None\n{code}\nprint('got it')")
        assert "got it" not in told, kind
        assert "MemoryError" in told or "Cannot allocate memory" in told or KILLED in told, (kind, told)


@at_every_tier
def test_more_memory_in_small_pieces_than_there_is(bounded: Victim) -> None:
    told = bounded.fate("x = []\nwhile len(x) < 1000: x.append('x' * 10**6 + str(len(x)))\nprint('got it')")
    assert "got it" not in told
    assert "MemoryError" in told or DEATH in told, told  # C libraries that get no memory end their process
    bounded.fate("x = None")


@at_every_tier
def test_memory_of_many_processes_each_below_the_limit(bounded: Victim) -> None:
    child = "b = bytearray(60 * 2**20)\nfor i in range(0, len(b), 4096): b[i] = 1\nimport time; time.sleep(600)"
    told = bounded.dies(
        f"held = [subprocess.Popen([sys.executable, '-S', '-c', child]) for _ in range(9)]\ntime.sleep({WAIT})",
        child=child,
    )
    used = rf"{KILLED} its processes together used [\d.]+ MiB of memory; 400[.0]* MiB are allowed"
    assert re.search(used, told), told


@at_every_tier
def test_memory_of_processes_whose_first_thread_has_ended(bounded: Victim) -> None:
    child = """
import ctypes, platform, threading, time
def live():
    block = bytearray(90 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(600)
threading.Thread(target=live).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""
    told = bounded.dies(
        f"held = [subprocess.Popen([sys.executable, '-S', '-c', child]) for _ in range(6)]\ntime.sleep({WAIT})",
        child=child,
    )
    assert re.search(rf"{KILLED} its processes together used [\d.]+ MiB of memory; 400", told), told


@at_every_tier
def test_locks_without_end(bounded: Victim) -> None:
    told = bounded.dies(f"""
import fcntl
files = [open(f"lock-{{number}}", "w") for number in range(50)]
for at in range(20_000): fcntl.lockf(files[at % 50], fcntl.LOCK_EX, 1, at)
time.sleep({WAIT})
""")
    assert "file locks; 10000 are allowed" in told


@at_every_tier
def test_shared_memory_that_is_touched(bounded: Victim) -> None:
    told = bounded.dies(f"""
shared = mmap.mmap(-1, 600 * 2**20)
for at in range(0, len(shared), 4096):
    shared[at] = 1
time.sleep({WAIT})
""")
    assert f"{KILLED} its processes together used" in told or "SIGKILL" in told


@at_every_tier
def test_memory_that_no_limit_of_a_process_counts(bounded: Victim) -> None:
    shmget = {"x86_64": 29, "aarch64": 194}[platform.machine()]
    told = bounded.run(f"""
print(attempt(os.memfd_create, "hidden"))
print(syscall({shmget}, 0, 64 * 2**20, 0o1600))
""")
    assert told.split() == ["EPERM", "EPERM"]


# -- processes and descriptors -----------------------------------------------------------------------------------------

_TREE = """
import os, time
def bomb(depth):
    for _ in range(2):
        try:
            child = os.fork()
        except OSError:
            os.write(1, b"refused")
            continue
        if not child:
            if depth:
                bomb(depth - 1)
            time.sleep(600)
            os._exit(0)
bomb(7)
time.sleep(600)
"""


@at_every_tier
def test_a_fork_bomb(bounded: Victim) -> None:
    told = bounded.fate(
        "bomb = subprocess.Popen([sys.executable, '-S', '-c', tree], stdout=subprocess.PIPE, start_new_session=True)\n"
        "print(bomb.stdout.read(7).decode())",
        tree=_TREE,
    )
    if told == "refused":
        count = len(bounded.host("result = kernel_pids(session)"))
        assert count <= 60, f"{count} processes; 40 are allowed"
        bounded.run("os.killpg(bomb.pid, signal.SIGKILL); bomb.wait(); None")
    else:
        assert f"{KILLED} it had" in told, told
        assert "processes and threads; 40 are allowed" in told


def _comet(generations: int) -> bytes:
    """A program that forks and ends, so many times over: each process is gone before anybody can look at it."""
    code = bytes.fromhex(
        f"bb{generations.to_bytes(4, 'little').hex()}"  # mov ebx, generations
        "ffcb740b"  # again: dec ebx; jz end
        "b8390000000f05"  # fork
        "85c074f1"  # in the child: again
        "b83c00000031ff0f05"  # end: exit(0)
    )
    base, start = 0x400000, 120
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, start + len(code), start + len(code), 0x1000)
    return head + code


_NO_COMET = """
import os, time
result, until = ["?"], time.time() + 60
while result and time.time() < until:
    result = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as file:
                result += [pid] if file.read().strip() == name else []
        except OSError:
            pass
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a program made by hand for x86_64")
@at_every_tier
def test_a_process_that_is_always_another_one(bounded: Victim) -> None:
    comet = f"comet-{bounded.tier.name}"[:15]
    with victim(bounded.tier, "confinement=Confinement(processes=40)") as one:
        told = one.fate(
            """
import contextlib
fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o755)
os.write(fd, bytes(program))
os.close(fd)
for _ in range(3):
    with contextlib.suppress(BlockingIOError):  # those that have ended count until somebody collects them
        subprocess.run([os.path.abspath(name)])
""",
            program=list(_comet(20_000)),
            name=comet,
        )
        assert not told or f"{KILLED} it had" in told, told
        # Where nothing else bounds them, the watchdog may come while they wait to be collected, under a later cell too.
        assert "42" in [one.fate("print(echo(6 * 7))") for _ in range(3)]
    assert bounded.tier.host(_NO_COMET, name=comet) == []


@at_every_tier
def test_a_thread_bomb(bounded: Victim) -> None:
    # Not by `Thread.start`: that waits for ever for a thread that had no memory to say that it has begun.
    told = bounded.fate("""
import _thread
started, go = 0, threading.Event()
try:
    for _ in range(400):
        _thread.start_new_thread(go.wait, ())
        started += 1
    time.sleep(100)
except (RuntimeError, MemoryError) as error:
    print(type(error).__name__, error)
finally:
    go.set()
print("started", started)
""")
    # Their stacks may have taken the memory by then that even one more object needs.
    assert "can't start new thread" in told or "MemoryError" in told or KILLED in told, told


@at_every_tier
def test_stacks_of_threads(bounded: Victim) -> None:
    told = bounded.fate("""
threading.stack_size(256 * 2**20)
started, go = 0, threading.Event()
try:
    for _ in range(30):
        threading.Thread(target=go.wait, daemon=True).start()
        started += 1
except (RuntimeError, MemoryError) as error:
    print(type(error).__name__)
finally:
    threading.stack_size(0)
    go.set()
print("started", started)
""")
    assert ("Error" in told and "started 30" not in told) or KILLED in told, told


@at_every_tier
def test_a_descriptor_bomb(bounded: Victim) -> None:
    told = bounded.run("""
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(errno.errorcode[error.errno], len(held))
for fd in held:
    os.close(fd)
""")
    assert told.startswith("EMFILE")
    assert int(told.split()[1]) < 200


@at_every_tier
def test_buffers_of_sockets_in_many_processes(bounded: Victim) -> None:
    child = """
import socket, time
held = []
try:
    while True:
        one, other = socket.socketpair()
        one.setblocking(False)
        held += [one, other]
        try:
            while True:
                one.send(bytes(2**12))
        except BlockingIOError:
            pass
except OSError:
    time.sleep(600)
"""
    told = bounded.dies(
        f"held = [subprocess.Popen([sys.executable, '-S', '-c', child]) for _ in range(10)]\ntime.sleep({WAIT})",
        child=child,
    )
    assert KILLED in told
    assert "open files; 1600 are allowed" in told or "of memory" in told


@at_every_tier
def test_terminals_and_sockets_that_are_on_their_way_in_a_socket(bounded: Victim) -> None:
    for make in ("[os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY)]", "[end.detach() for end in socket.socketpair()]"):
        told = bounded.fate(f"""
import array
one, other = socket.socketpair()
one.setblocking(False)
try:
    for _ in range(10):
        sent = [fd for _ in range(10) for fd in {make}]
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))])
        for fd in sent: os.close(fd)
    time.sleep({WAIT})
    print("unseen")
except OSError as error:
    print(errno.errorcode[error.errno])
""")
        if bounded.tier.letter == "N":
            assert re.search(f"{KILLED} it had \\d+ (terminals|descriptors on their way)", told), told
        else:
            assert told in ("EPERM", "EACCES"), told


@at_every_tier
def test_a_zombie_bomb(bounded: Victim) -> None:
    told = bounded.fate("""
made = 0
try:
    for _ in range(300):
        if not os.fork():
            os._exit(0)
        made += 1
    time.sleep(100)
except OSError as error:
    print(errno.errorcode[error.errno])
print("made", made)
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
""")
    assert "EAGAIN" in told or f"{KILLED} it had" in told, told


# -- time --------------------------------------------------------------------------------------------------------------


@at_every_tier
def test_more_processor_time_than_allowed(bounded: Victim) -> None:
    used = float(bounded.run("print(time.process_time())"))  # a slow machine needs so much and more for the start
    with victim(bounded.tier, f"confinement=Confinement(cpu_seconds={2 + int(2 * used)})") as one:
        told = one.dies("while True: pass")
        assert "SIGXCPU" in told or "SIGKILL" in told, told
        one.assert_works()


@at_every_tier
def test_a_cell_that_never_ends_and_hears_no_interrupt(bounded: Victim) -> None:
    with victim(bounded.tier, "limits=Limits(cell_seconds=0.5)") as one:
        told = one.dies("while True:\n try: time.sleep(9)\n except BaseException: pass")
        assert "ran longer than 0.5 s of its own time and did not react to an interrupt" in told
        one.assert_works()


@at_every_tier
def test_a_cell_that_never_leaves_c_code(bounded: Victim) -> None:
    with victim(bounded.tier, "limits=Limits(cell_seconds=0.5)") as one:
        for code in ("import re\nre.match('(a+)+$', 'a' * 60 + 'b')", "x = (1 << 10**7) ** (10**4)"):
            told = one.fate(code)
            assert "ran longer than 0.5 s" in told or "MemoryError" in told, told
            one.assert_works()


# -- output ------------------------------------------------------------------------------------------------------------

_MOST_GROWTH = 60 * MIB  # of the host, for any flood

_FLOODS = {
    "print": "for _ in range(200): print('x' * 10**6)",
    "bytes": "for _ in range(200): os.write(1, b'x' * 10**6)",
    "subprocess": "subprocess.run('yes | head -c 200000000', shell=True); None",
    "one print": "print('x' * 10**8)",
    "result": "'x' * 10**8",
    "error": "raise ValueError('x' * 10**8)",
    "text of an error": "class E(Exception):\n def __str__(self): return 'x' * 10**8\nraise E",
    "causes": "def f(n):\n try: 1 / 0\n except Exception: raise ValueError('y' * 10**5) if not n else f(n - 1)\nf(500)",
    "name of an error": "raise type('N' * 10**7, (Exception,), {})('x')",
}


def _peak(tier: Tier) -> int:
    """The most memory that the host has had so far, in bytes."""
    found = tier.host("result = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]")
    return int(found[0].split()[1]) * 1024


@at_every_tier
def test_a_flood_of_output(bounded: Victim) -> None:
    for kind, code in _FLOODS.items():
        before = _peak(bounded.tier)
        assert len(bounded.fate(code)) < 3 * 10**6, kind
        assert _peak(bounded.tier) - before < _MOST_GROWTH, kind


@at_every_tier
def test_answers_that_nobody_takes(bounded: Victim) -> None:
    options = "tools={**tools, 'large': lambda: 'x' * (8 * 2**20)}, limits=Limits(cell_seconds=4, frame_bytes=2**25)"
    with victim(bounded.tier, options) as one:
        before = _peak(bounded.tier)
        told = one.dies("""
import msgspec
pack = msgspec.msgpack.encode
for number in range(64):
    get_ipython().kernel.channel._out.send([pack(["call", 10**6 + number, "large"]), pack([[], {}])])
print("begun")
os.kill(os.getpid(), signal.SIGSTOP)
""")
        assert "begun" in told
        assert _peak(bounded.tier) - before < 250 * MIB  # all of them are 504 MiB, and as much again while being made


# -- checkpoints -------------------------------------------------------------------------------------------------------


@at_every_tier
def test_a_checkpoint_that_is_too_large_too_deep_or_ends_whoever_makes_it(bounded: Victim) -> None:
    bounded.run("""
kept, large, deep = 1, os.urandom(30 * 2**20), []
for _ in range(100_000):
    deep = [deep]
around = []
around.append(around)
class Bomb:
    def __reduce__(self):
        raise SystemExit(3)
class Odd:
    def __reduce__(self):
        return eval, ("1 / 0",)
bomb, odd = Bomb(), Odd()
""")
    told = bounded.dies("os._exit(1)")
    assert "large (larger than the checkpoint's 2097152 bytes)" in told
    assert "bomb (SystemExit" in told
    assert "odd (restoring it raised ZeroDivisionError" in told
    missing = "print(kept, around[0] is around, [name for name in ('large', 'bomb', 'odd') if name in globals()])"
    assert bounded.run(missing) == "1 True []"


@at_every_tier
def test_a_checkpoint_that_kills_whoever_restores_it(bounded: Victim) -> None:
    bounded.run("class Mine:\n def __reduce__(self): return os._exit, (7,)\nkept, mine = 1, Mine()")
    told = bounded.dies("os._exit(1)")
    assert "Lost: all names (restoring them failed: it exited with status 7)" in told
