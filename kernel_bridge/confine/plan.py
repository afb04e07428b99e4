"""The plan: from limits to a command line, an environment and resource limits. Starts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel_bridge.confine.vocabulary import Confinement

__all__ = ["LaunchPlan", "plan_launch"]

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
_ADDRESS_SPACE_ROOM = 4 * 2**30  # bytes above memory_bytes: mapped files and reserved ranges are not memory in use


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How one kernel process is to be started."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    rlimits: Mapping[str, tuple[int, int]]  # name in the resource module -> (soft, hard)


def plan_launch(limits: Confinement, *, python: str, config_file: Path, scratch: Path) -> LaunchPlan:
    """Plan a kernel as a plain process.

    Args:
        limits: what `resolve` returned.
        python: the interpreter that becomes the kernel.
        config_file: what `inside/launch.py` reads.
        scratch: the kernel's working and home directory.
    """
    script = Path(__file__).parents[1] / "inside" / "launch.py"
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    home = str(scratch)
    environment.update(
        HOME=home,
        USERPROFILE=home,
        TMPDIR=home,
        TEMP=home,
        TMP=home,
        IPYTHONDIR=str(scratch / ".ipython"),
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
    rlimits = _rlimits(limits) if os.name == "posix" else {}
    flags = ["-X", "frozen_modules=on"] if sys.version_info >= (3, 11) and python == sys.executable else []
    return LaunchPlan([python, *flags, str(script), str(config_file)], environment, rlimits)


def _rlimits(limits: Confinement) -> dict[str, tuple[int, int]]:
    import resource

    found: dict[str, tuple[int, int]] = {"RLIMIT_CORE": (0, 0)}
    if limits.memory_bytes is not None:
        found["RLIMIT_DATA"] = (limits.memory_bytes, limits.memory_bytes)
        room = limits.memory_bytes + _ADDRESS_SPACE_ROOM
        found["RLIMIT_AS"] = (room, room)
    if limits.cpu_seconds is not None:
        found["RLIMIT_CPU"] = (limits.cpu_seconds, limits.cpu_seconds + 1)
    if limits.scratch_bytes is not None:
        found["RLIMIT_FSIZE"] = (limits.scratch_bytes, limits.scratch_bytes)
    if limits.open_files is not None:
        found["RLIMIT_NOFILE"] = (limits.open_files, limits.open_files)
    return {name: value for name, value in found.items() if hasattr(resource, name)}
