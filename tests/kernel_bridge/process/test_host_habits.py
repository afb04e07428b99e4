"""A host in an unusual state gets the same kernel as any other, or one clear error: never a weaker kernel."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from child_process import Child, forked, fresh, output_of

from kernel_bridge import Confinement, KernelSession, StartupFailed, probe

posix = pytest.mark.skipif(os.name != "posix", reason="signals, descriptors and modes of POSIX")

# Puts itself into a state, then uses a kernel as any host does. What comes of it is written to the file named first.
HOST = """
import json, os, signal, sys
{state}
from kernel_bridge import KernelSession, Limits
from kernel_bridge.errors import BridgeError

found = {{}}
try:
    with KernelSession(limits=Limits(cell_seconds=2)) as session:
        found["tier"] = session.report.tier
        found["text"] = session.run("kept = 41; print(kept)").text
        found["timed_out"] = session.run("import time; time.sleep(600)").timed_out
        found["death"] = session.run("import os; os._exit(7)").death.reason
        found["restored"] = session.run("print(kept)").text
        found["children"] = session.run(
            "import subprocess; print(subprocess.run(['/bin/sh', '-c', 'exit 3']).returncode)").text
except BridgeError as error:
    found["error"] = f"{{type(error).__name__}}: {{error}}"
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
"""


def use(tmp_path: Path, state: str = "", **environment: str | None) -> dict[str, Any]:
    """What a host in this state makes of a kernel. A variable that is None is not set."""
    answer = tmp_path / "answer.json"
    output_of(forked(HOST.format(state=state), answer, variables=environment))
    return json.loads(answer.read_text())


def as_usual() -> dict[str, Any]:
    return {
        "tier": probe().tier,
        "text": "41\n",
        "timed_out": "ran longer than 2 s of its own time",
        "death": "it exited with status 7",
        "restored": "41\n",
        "children": "3\n",
    }


STATES = {
    "SIGPIPE kills it": "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "signals are ignored": (
        "for name in ('SIGCHLD', 'SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGALRM'):\n"
        "    signal.signal(getattr(signal, name), signal.SIG_IGN)"
    ),
    "signals are blocked": "signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())",
    "it reaps every child": (
        "def reap(*_):\n"
        "    try:\n"
        "        while os.waitpid(-1, os.WNOHANG)[0]: pass\n"
        "    except ChildProcessError: pass\n"
        "signal.signal(signal.SIGCHLD, reap)"
    ),
    "no standard descriptors": "for fd in (0, 1, 2): os.close(fd)",
    "umask 777": "os.umask(0o777)",
    "umask 0": "os.umask(0)",
    "an odd environment": (
        "os.environ.pop('HOME', None)\nos.environ.update(XDG_RUNTIME_DIR='relative/place', TMPDIR='/nowhere/at/all')"
    ),
    "no hard links": """
import ctypes, platform, struct
numbers = {"x86_64": (86, 265), "aarch64": (37, 37)}[platform.machine()]
steps = [(0x20, 0, 0, 0), (0x15, 1, 0, numbers[0]), (0x15, 0, 1, numbers[1]), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
if os.geteuid(): libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0) == 0
try: os.link(sys.executable, "linked")
except PermissionError: pass
""",
    "no descriptors of processes": (
        "def refuse(*_): raise OSError(38, 'Function not implemented')\nos.pidfd_open = refuse"
    ),
    "no directory": "import tempfile; place = tempfile.mkdtemp(); os.chdir(place); os.rmdir(place)",
}


@posix
@pytest.mark.parametrize("state", STATES)
def test_a_state_of_the_host_changes_nothing(tmp_path: Path, state: str) -> None:
    if state == "no hard links" and platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("how a machine of this kind refuses a system call is not known here")
    assert use(tmp_path, STATES[state]) == as_usual()


def run_host(tmp_path: Path, code: str, *, start: Callable[..., Child] = forked, **environment: str) -> Any:
    """What a host found out: the value of `found` after this code, which begins with the names of HOST."""
    answer = tmp_path / "answer.json"
    code = f"{IMPORTS}\n{code}\nwith open(sys.argv[1], 'w') as file: json.dump(found, file)\n"
    output_of(start(code, answer, variables=environment))
    return json.loads(answer.read_text())


IMPORTS = """
import json, os, resource, signal, sys, time
from kernel_bridge import Confinement, KernelSession, Limits, probe
from kernel_bridge.errors import BridgeError

def limit(seconds):
    '''For a trial run.'''
    from kernel_bridge.confine import resolve
    sys.modules["kernel_bridge.confine.trial"]._TRIAL_SECONDS = seconds

def start(**options):
    '''The tier of a session that was started, or the error.'''
    try:
        with KernelSession(**options) as session:
            return session.report.tier if session.run("print(6 * 7)").text == "42\\n" else "no answer"
    except BridgeError as error:
        return f"{type(error).__name__}: {error}"
"""

# -- what speaks when a Python starts --------------------------------------------------------------------------------

NOISE = """
import atexit, sys
print("welcome to", sys.executable)
print("a warning", file=sys.stderr, flush=True)
sys.stdout.write("no end of a line")
atexit.register(lambda: (print("good bye"), print("good bye", file=sys.stderr)))
"""


@pytest.mark.parametrize("where", ["sitecustomize.py", "usercustomize.py", "noise.pth", "PYTHONVERBOSE"])
def test_what_a_python_says_at_its_start_is_no_answer(tmp_path: Path, where: str) -> None:
    more: dict[str, str] = {"PYTHONVERBOSE": "1"} if where == "PYTHONVERBOSE" else {}
    if where == "sitecustomize.py":
        (tmp_path / where).write_text(NOISE)
        more = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    elif where != "PYTHONVERBOSE":
        site = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = tmp_path / "lib" / site / "site-packages"
        packages.mkdir(parents=True)
        text = NOISE if where == "usercustomize.py" else "import sys; print('welcome'); print('you', file=sys.stderr)\n"
        (packages / where).write_text(text)
        more = {"PYTHONUSERBASE": str(tmp_path)}
    assert run_host(tmp_path, "found = start()", start=fresh, **more) == probe().tier


# -- trouble that passes ---------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tiers N and L are for Linux")
needs_tier_n = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("bwrap") is None, reason="needs bubblewrap of the system"
)

IN_TROUBLE_ONCE = """
if [ "$1" = --version ] || [ -e "$0.ran" ]; then exec {bwrap} "$@"; fi
touch "$0.ran"
{trouble}
"""


def beside_a_wrapper(tmp_path: Path, script: str, code: str) -> Any:
    """What a host finds out that has this shell script for its bubblewrap; {bwrap} in it is the real one."""
    if probe().tier != "N":
        pytest.skip("needs a machine that gives namespaces")
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\n" + script.replace("{bwrap}", shutil.which("bwrap") or ""))
    fake.chmod(0o755)
    return run_host(tmp_path, code, PATH=f"{tmp_path}:{os.environ['PATH']}")


@needs_tier_n
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("echo 'bwrap: Creating new namespace failed: Resource temporarily unavailable' >&2; exit 1", "ulimit -u"),
        ("echo 'bwrap: Can not create file: No space left on device' >&2; exit 1", "the disk is full"),
        ("kill -ABRT $$", "killed by signal 6"),
        ("exit 0", "ended without a word"),
        ("exec sleep 600", "did not end within"),
    ],
)
def test_trouble_in_a_trial_is_an_error_and_not_a_weaker_tier(tmp_path: Path, trouble: str, said: str) -> None:
    seconds = 2 if "sleep" in trouble else 60
    code = f"limit({seconds})\nfound = [start()]\nlimit(60)\nfound.append(start())"
    refusal, then = beside_a_wrapper(tmp_path, IN_TROUBLE_ONCE.replace("{trouble}", trouble), code)
    assert refusal.startswith(
        "StartupFailed: what confinement this machine gives (tier N) could not be found out now: "
    )
    assert said in refusal
    assert then == "N"


@needs_tier_n
def test_a_version_that_could_not_be_asked_for_is_asked_for_again(tmp_path: Path) -> None:
    script = '[ -e "$0.ran" ] && exec {bwrap} "$@"\ntouch "$0.ran"\necho "fork: Cannot allocate memory" >&2\n'
    refusal, then = beside_a_wrapper(tmp_path, script, "found = [start(), start()]")
    assert "cannot be run now: fork: Cannot allocate memory" in refusal
    assert then == "N"


ODD = '[ "$1" = --version ] && exec {bwrap} "$@"\necho "bwrap: odd" >&2\nexit 1\n'


@needs_tier_n
def test_a_wrapper_that_refuses_lowers_the_tier_and_the_reason_is_told(tmp_path: Path) -> None:
    tier, note = beside_a_wrapper(tmp_path, ODD, "found = [start(), probe().notes[0]]")
    assert tier in ("L", "P")
    assert note.startswith("tier N is not available: bubblewrap ")
    assert "fails here (bwrap: odd); " in note


@needs_tier_n
def test_what_fails_without_any_confinement_too_is_no_reason_to_confine_less(tmp_path: Path) -> None:
    """The wrapper fails in words that nobody knows, and so does a kernel's Python without it."""
    broken = "import kernel_bridge.confine.tier_plain as plain\nplain.kernel_command = lambda *_: ['/nowhere/python']\n"
    found = beside_a_wrapper(tmp_path, ODD, f"{broken}found = start()")
    assert "not even a program without any confinement runs: cannot start /nowhere/python" in found


@posix
@pytest.mark.parametrize("own", ["/nowhere/python", "/etc/passwd"])
def test_a_host_that_cannot_run_its_own_python_is_told_so_and_not_confined_less(tmp_path: Path, own: str) -> None:
    """As a daemon that began as root and has become somebody else."""
    found = run_host(tmp_path, f"usual = sys.executable\nsys.executable = {own!r}\nfound = [start(python=usual)]\n"
                               "sys.executable = usual\nfound.append(start())")  # fmt: skip
    assert found[0].startswith("StartupFailed: what confinement this machine gives (tier ")
    assert "this process cannot run its own Python: " in found[0]
    assert own in found[0]
    assert found[1] == probe().tier


EVERY_DESCRIPTOR = """
def left():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [file.read().split(), os.listdir(ROOT) if os.path.isdir(ROOT) else []]
ROOT = os.path.join(os.environ["TMPDIR"], f"kernel_bridge-{os.getuid()}")
if KNOWN: probe()
import kernel_bridge.session
usual = resource.getrlimit(resource.RLIMIT_NOFILE)
highest = max(map(int, os.listdir("/proc/self/fd")))
said, more = [], 0
while not said or said[-1] not in ("N", "L", "P"):
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, usual[1]))
    said.append(start())
    resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    assert left() == [[], []], (said, left())
    more += STEP
found = [said, start()]
"""


@linux
@pytest.mark.parametrize("known", [False, True])
def test_a_host_without_descriptors_gets_an_error_until_it_has_enough(tmp_path: Path, known: bool) -> None:
    code = EVERY_DESCRIPTOR.replace("KNOWN", str(known)).replace("STEP", "1" if known else "2")
    with tempfile.TemporaryDirectory() as place:
        said, last = run_host(tmp_path, code, TMPDIR=place)
    assert last == said[-1] == probe().tier
    assert len(said) > 3
    for refusal in said[:-1]:
        assert refusal.startswith("StartupFailed: "), refusal
        assert "ulimit -n" in refusal, refusal


NO_THREADS = """
import threading
root = os.path.join(os.environ["TMPDIR"], f"kernel_bridge-{os.getuid()}")
usual = threading.Thread.start
found = []
for allowed in range(9):  # a limit cannot be set to one thread exactly: this is how Python tells of it
    def begin(thread, left=[allowed]):
        if not left[0]: raise RuntimeError("can't start new thread")
        left[0] -= 1
        usual(thread)
    threading.Thread.start = begin
    found.append(start())
    threading.Thread.start = usual
    with open(f"/proc/self/task/{os.getpid()}/children") as file: left = file.read().split()
    assert (left, os.listdir(root)) == ([], []), (found, left, os.listdir(root))
    if found[-1] == probe().tier: break
"""


@linux
def test_a_host_that_can_start_no_thread_gets_an_error_until_it_can(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        *refusals, last = run_host(tmp_path, NO_THREADS, TMPDIR=place)
    assert last == probe().tier
    assert refusals
    for refusal in refusals:
        assert refusal.startswith("StartupFailed: "), refusal
        assert "ulimit -u" in refusal, refusal


@linux
@pytest.mark.parametrize("processes", [1, 3, 7])
def test_a_kernel_that_may_have_no_more_threads_says_so_wherever_its_start_has_come(processes: int) -> None:
    refusal: StartupFailed | None = None
    try:
        with KernelSession(confinement=Confinement(processes=processes)) as session:
            assert session.run("print(6 * 7)").text == "42\n"
    except StartupFailed as error:
        refusal = error
    if refusal is not None:  # else there the limit is not counted for the kernel alone
        assert "the limit of processes or threads" in refusal.reason
        assert refusal.stderr_tail


FULL_DISK = """
sys.path.insert(0, {chaos!r})
import private_disk
place = {place!r}
private_disk.enter(place, 1 << 20)
if {known}: probe()
with open(os.path.join(place, "full"), "wb", 0) as file:
    try:
        while file.write(bytes(4096)): pass
    except OSError: pass
found = [start(runtime_dir=place + "/session")]
os.unlink(os.path.join(place, "full"))
found += [start(runtime_dir=place + "/session"), os.listdir(place + "/session")]
"""


@linux
@pytest.mark.parametrize("known", [False, True])
def test_a_full_disk_is_an_error_as_long_as_it_is_full(tmp_path: Path, known: bool) -> None:
    chaos = str(Path(__file__).parents[2] / "chaos")
    command = [sys.executable, f"{chaos}/private_disk.py", str(tmp_path)]
    can = subprocess.run(command, capture_output=True, text=True, check=False)
    if can.returncode:
        pytest.skip(can.stderr)
    with tempfile.TemporaryDirectory() as place:
        refusal, then, left = run_host(tmp_path, FULL_DISK.format(chaos=chaos, place=place, known=known))
    assert refusal.startswith("StartupFailed: ")
    assert "the disk is full: free some space" in refusal
    assert (then, left) == (probe().tier, [])


# -- a host that is killed, or forks ---------------------------------------------------------------------------------


@needs_tier_n
def test_what_a_host_leaves_that_is_killed_in_a_trial_is_removed_by_the_next(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    if probe().tier != "N":
        pytest.skip("needs a machine that gives namespaces")
    fake = tmp_path / "bwrap"
    fake.write_text(f"""#!/bin/sh
if [ "$1" = --version ]; then exec {shutil.which("bwrap")} "$@"; fi
touch "$0.ran"
exec sleep 600
""")
    fake.chmod(0o755)
    with tempfile.TemporaryDirectory() as place:
        env = {"TMPDIR": place, "XDG_RUNTIME_DIR": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        with fresh(f"{IMPORTS}\nprobe()", variables=env) as host:
            wait_until(Path(f"{fake}.ran").exists, "the trial run")
            [asleep] = psutil.Process(host.pid).children()
            [root] = Path(place).iterdir()
            assert len(list(root.iterdir())) == 1
            host.killed()
        asleep.kill()  # a bubblewrap dies with its host
        code = "found = [start(), os.listdir(os.path.join(os.environ['TMPDIR'], f'kernel_bridge-{os.getuid()}'))]"
        assert run_host(tmp_path, code, TMPDIR=place) == [probe().tier, []]


FORK = """
import gc, threading

def in_child(action):
    # What a child of a fork says, and how it ended.
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        os.write(writing, action().encode())
        os.close(writing)
        sys.exit(3)
    os.close(writing)
    with open(reading) as file: said = file.read()
    return said, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def use():
    try:
        return session.run("1").text
    except BridgeError as error:
        return f"{type(error).__name__}: {error}"

def leave():
    session.interrupt()
    session.close()
    globals().pop("session")
    gc.collect()
    return "left"

def renew():
    return start()

unused = KernelSession()

def use_unused():
    with unused: return unused.run("print(6 * 7)").text

def busy():
    # Forks while a cell runs and a tool is under way: locks are held by threads that the child has not.
    entered, go_on = threading.Event(), threading.Event()
    session.tools = {"wait": lambda: (entered.set(), go_on.wait(60))[1]}
    done = []
    thread = threading.Thread(target=lambda: done.append(session.run("print(wait())").text))
    thread.start()
    entered.wait(60)
    found = in_child(use), in_child(leave)
    go_on.set()
    thread.join()
    return found, done

def fork_in_tool():
    child = os.fork()
    if not child:
        signal.alarm(60)
        raise SystemExit(5)
    return os.waitpid(child, 0)[1] != signal.SIGALRM

session = KernelSession()
session.start()
session.run("kept = 41")
place = session.connection_file.parent
found = {"use": in_child(use), "leave": in_child(leave), "renew": in_child(renew), "unused": in_child(use_unused)}
found["busy"] = busy()
session.tools = {"fork_in_tool": fork_in_tool}
found["tool"] = session.run("print(fork_in_tool())").text
found["after"] = [session.run("print(kept + 1)").text, (place / "kernel.json").exists()]
session.close()
found["closed"] = place.exists()
"""


@posix
def test_a_child_of_a_fork_is_told_and_touches_nothing_of_its_parents(tmp_path: Path) -> None:
    found = run_host(tmp_path, FORK)
    for said, status in (found["use"], found["busy"][0][0]):
        assert said.startswith("SessionClosed: this session's kernel belongs to process "), said
        assert "make a new one in this process" in said
        assert status == 3
    assert found["leave"] == found["busy"][0][1] == ["left", 3]
    assert found["renew"] == [probe().tier, 3]
    assert found["unused"] == ["42\n", 3]
    assert found["busy"][1] == ["True\n"]
    assert found["tool"] == "True\n"
    assert found["after"] == ["42\n", True]
    assert found["closed"] is False
