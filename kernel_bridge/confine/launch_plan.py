"""A launch plan: how one kernel process is to be started, what all tiers share in it, and the files it needs."""

from __future__ import annotations

import base64
import contextlib
import marshal
import os
import platform
import site
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.seccomp import filter_for
from kernel_bridge.files.layout import Layout
from kernel_bridge.files.private_files import make_file, open_new
from kernel_bridge.inside.launch_config import OPENED, GuardianConfig, Seal, SpawnConfig

__all__ = [
    "ARGUMENTS",
    "OPENED",
    "PACKAGE",
    "LaunchPlan",
    "clean_environment",
    "encoded_filter",
    "kernel_command",
    "prepare_files",
    "rlimits",
    "spawn_command",
    "write_spawn_file",
]

PACKAGE = Path(__file__).parents[1]  # kernel_bridge itself
ARGUMENTS = "DESCRIPTOR"  # stands in a wrapper's command for the descriptor that it reads its arguments from

_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "PYTHONHOME",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SYSTEMROOT",
    "WINDIR",
    "COMSPEC",
    "PATHEXT",
    "NUMBER_OF_PROCESSORS",
)
_OF_THIS_PYTHON = ("PYTHONHOME", "PYTHONPATH")  # another would find modules there that are not for it
_LISTS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_MOST_SIGNALS = 4096
_LOCKED_BYTES = 2**20
_ADDRESS_SPACE_ROOM = 4 * 2**30  # bytes above memory_bytes: mapped files and reserved ranges are not memory in use


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How one kernel process is to be started."""

    argv: Sequence[str]  # the kernel's own command, without its configuration file
    environment: Mapping[str, str]
    inside: Layout  # the directories as the kernel sees them
    seal: Seal | None  # what the process does to itself first
    wrapper_arguments: Sequence[str] | None = None  # what the wrapper reads from the descriptor in argv
    owner: int | None = None  # user that must own the writable directories; None: the host's own
    tmpfs: Sequence[str] = ()  # the kernel's own file systems in memory, as it sees them
    files: Mapping[str, str] | None = None  # small files to be made in the session's directory first

    @property
    def command(self) -> list[str]:
        """The kernel's whole command."""
        return [*self.argv, str(self.inside.config)]


def clean_environment(limits: Confinement, scratch: Path, python: str) -> dict[str, str]:
    """A kernel's environment: a short list of the host's variables, places inside scratch, and what was asked for."""
    names = _PASSED_ON if python == sys.executable else [name for name in _PASSED_ON if name not in _OF_THIS_PYTHON]
    environment = {name: os.environ[name] for name in names if name in os.environ}
    for name in _LISTS:
        if name in environment:
            environment[name] = _absolute(environment[name])
    home = str(scratch)
    environment.update(
        HOME=home,
        USERPROFILE=home,
        TMPDIR=home,
        TEMP=home,
        TMP=home,
        IPYTHONDIR=str(scratch / ".ipython"),
        # Python runs what it finds in the user's own packages before a kernel is sealed: never from below its HOME.
        PYTHONUSERBASE=site.getuserbase(),
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONIOENCODING="utf-8",
        PYTHONUTF8="1",
        # glibc would give and take back each large buffer page by page: a 10 MB input costs a third more so.
        MALLOC_MMAP_THRESHOLD_=str(32 * 2**20),
        MALLOC_TRIM_THRESHOLD_=str(128 * 2**20),
        MALLOC_ARENA_MAX="2",  # glibc reserves address space for each arena, which counts against the limit
        PAGER="cat",
        GIT_PAGER="cat",
        NO_COLOR="1",
    )
    environment.update(limits.environment)
    return environment


def _absolute(places: str) -> str:
    """A list of directories without those that depend on the working directory, which is the agent's to fill.

    What stands there would be run by a successor's Python, or by its loader, before the kernel is sealed.
    """
    return os.pathsep.join(place for place in places.split(os.pathsep) if os.path.isabs(place))


def rlimits(limits: Confinement, *, count_processes: bool) -> dict[str, tuple[int, int]]:
    """Resource limits by their name in the resource module, as (soft, hard).

    Args:
        count_processes: limit processes too. Only where they are counted for this kernel alone.
    """
    if os.name != "posix":
        return {}
    import resource

    found: dict[str, tuple[int, int]] = {"RLIMIT_CORE": (0, 0)}
    if limits.memory_bytes is not None:
        found["RLIMIT_DATA"] = (limits.memory_bytes, limits.memory_bytes)
        room = limits.memory_bytes + _ADDRESS_SPACE_ROOM
        found["RLIMIT_AS"] = (room, room)
        found["RLIMIT_MEMLOCK"] = (_LOCKED_BYTES, _LOCKED_BYTES)
    if limits.cpu_seconds is not None:
        found["RLIMIT_CPU"] = (limits.cpu_seconds, limits.cpu_seconds + 1)
    if limits.scratch_bytes is not None:
        found["RLIMIT_FSIZE"] = (limits.scratch_bytes, limits.scratch_bytes)
    if limits.open_files is not None:
        found["RLIMIT_NOFILE"] = (limits.open_files, limits.open_files)
    if limits.processes is not None:
        # Timers and queued signals are counted for the user, and real-time priority leaves nothing to others.
        found.update(RLIMIT_SIGPENDING=(_MOST_SIGNALS, _MOST_SIGNALS), RLIMIT_RTPRIO=(0, 0), RLIMIT_NICE=(0, 0))
    if limits.processes is not None and count_processes:
        found["RLIMIT_NPROC"] = (limits.processes, limits.processes)
    return {name: value for name, value in found.items() if hasattr(resource, name)}


def encoded_filter(*, unix_connect: bool, send_descriptors: bool = False, same_user: bool = False) -> str | None:
    """The system call filter for this machine as text, or None when there is none for it; see `filter_for`."""
    machine = platform.machine()
    made = filter_for(machine, unix_connect=unix_connect, send_descriptors=send_descriptors, same_user=same_user)
    return None if made is None else base64.b64encode(made).decode("ascii")


def kernel_command(python: str, package: str) -> list[str]:
    """The command that becomes a kernel when its configuration file's path is added."""
    flags = ["-X", "frozen_modules=on"] if sys.version_info >= (3, 11) and python == sys.executable else []
    return [_without_detours(python), *flags, f"{package}/inside/launch.py"]


def _without_detours(python: str) -> str:
    """The same program without `..`, as of `../venv/bin/python`: what it leads through is not there in a namespace."""
    straight = os.path.normpath(python)
    return straight if ".." in python.split("/") and os.path.exists(straight) else python


def prepare_files(plan: LaunchPlan, layout: Layout) -> None:
    """Make the small files that a plan asks for and those that a kernel writes, and give the latter to their owner."""
    for path in layout.written():
        with contextlib.suppress(FileExistsError):
            os.close(open_new(Path(path)))
    for name, text in (plan.files or {}).items():
        make_file(layout.session / name, text.encode(), 0o644)
    if plan.owner is not None:
        for path in (layout.sockets, layout.keep, layout.scratch, *layout.written()):
            os.chown(path, plan.owner, plan.owner, follow_symlinks=False)


def write_spawn_file(plan: LaunchPlan, layout: Layout, guardian: GuardianConfig | None) -> str:
    """Write the file that `inside/spawn.py` reads, and return its path. Raises: OSError."""
    file = layout.session / "spawn"
    make_file(file, marshal.dumps(asdict(SpawnConfig(guardian, plan.command, plan.wrapper_arguments, ARGUMENTS))))
    return str(file)


def spawn_command(*arguments: str) -> list[str]:
    """The command that runs `inside/spawn.py`."""
    return [sys.executable, "-I", "-S", str(PACKAGE / "inside" / "spawn.py"), *arguments]
