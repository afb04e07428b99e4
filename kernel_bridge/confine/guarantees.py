"""The guarantees by name, and what a caller asks for: limits, paths, and the guarantees that must hold. Data only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

__all__ = ["GUARANTEES", "Confinement", "limits_asked", "unasked"]

GUARANTEES: Mapping[str, str] = {
    "own_process": "the agent's code runs in another process than the host's",
    "killed_with_host": "the kernel and everything it started end when the host ends, however it ends",
    "clean_environment": "no environment variable of the host reaches the kernel but a short harmless list",
    "no_network": "no connection can be made or taken",
    "filesystem_allowlist": "only named paths can be read, only scratch can be written",
    "private_tmp": "/tmp and /dev/shm are the kernel's own",
    "scratch_capped": "what the kernel writes is bounded in total",
    "memory_capped": "the kernel's memory is bounded",
    "cpu_capped": "the kernel's CPU time is bounded",
    "processes_capped": "the number of processes and threads is bounded",
    "output_capped": "what a cell prints costs the host a fixed buffer at most",
    "wall_time_capped": "a cell's own time is bounded",
    "no_new_privileges": "set-uid programs give the kernel nothing",
    "reduced_syscalls": "rarely needed and dangerous system calls are refused",
    "no_host_processes_visible": "the kernel cannot see other processes",
}
"""Every guarantee and what it means."""

_LIMITS: Mapping[str, str] = {
    "memory_capped": "memory_bytes",
    "cpu_capped": "cpu_seconds",
    "processes_capped": "processes",
    "scratch_capped": "scratch_bytes",
}  # guarantee -> the field of `Confinement` that asks for it


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a kernel may have and what must be guaranteed. Sizes are bytes, times are seconds."""

    require: frozenset[str] = frozenset()  # guarantees without which no kernel is started
    memory_bytes: int | None = 2 * 2**30  # of each process, and of all together; None: unbounded
    cpu_seconds: int | None = None  # CPU time of each process, for the whole session; None: unbounded
    processes: int | None = 128  # processes and threads together; None: unbounded
    scratch_bytes: int | None = 2**30  # all that the kernel writes, but for `writable`; None: unbounded
    open_files: int | None = 1024
    read_only: tuple[str | Path, ...] = ()  # extra paths that may be read, under the same path inside
    writable: tuple[str | Path, ...] = ()  # extra paths that may be read and written, as the modes of its files allow
    environment: Mapping[str, str] = field(default_factory=dict[str, str])  # variables given to the kernel

    def __post_init__(self) -> None:
        asked = _several(self, "require", "a set of guarantees", str)
        object.__setattr__(self, "require", frozenset(asked))
        unknown = sorted(set(asked) - set(GUARANTEES))
        if unknown:
            raise ValueError(f"Confinement.require names {unknown}; the guarantees are: {', '.join(GUARANTEES)}")
        for name in ("read_only", "writable"):
            paths = _several(self, name, "a tuple of paths", (str, Path))
            if not all(map(str, paths)):
                raise ValueError(f"Confinement.{name} holds an empty path")
            object.__setattr__(self, name, tuple(paths))
        for name in ("memory_bytes", "cpu_seconds", "processes", "scratch_bytes", "open_files"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
                raise ValueError(f"Confinement.{name} must be a positive whole number or None, not {value!r}")
        if not isinstance(self.environment, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"Confinement.environment must be a dict, not {self.environment!r}")
        for key, value in self.environment.items():
            if not isinstance(key, str) or not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(f"Confinement.environment maps str to str, not {key!r} to {value!r}")
            if not key or "=" in key or "\0" in key + value:
                raise ValueError(f"Confinement.environment: no environment can hold {key!r} with {value!r}")


def unasked(limits: Confinement) -> dict[str, str]:
    """The guarantees for which no limit is set, and what would ask for each."""
    return {
        name: f"not asked for: set {limit} in a Confinement"
        for name, limit in _LIMITS.items()
        if getattr(limits, limit) is None
    }


def _several(of: Confinement, name: str, accepted: str, kind: type | tuple[type, ...]) -> list[Any]:
    """The items of a field that holds several. A text is refused: it would be taken letter by letter."""
    value: Any = getattr(of, name)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        items: list[Any] = list(cast("Iterable[Any]", value))
        if all(isinstance(item, kind) for item in items):
            return items
    raise ValueError(f"Confinement.{name} must be {accepted}, not {value!r}")


def limits_asked(asked: object) -> Confinement:
    """The limits and requirements in what a caller asked for, unless that is `"off"`. Raises: ValueError."""
    if isinstance(asked, Confinement):
        return asked
    if asked == "auto":
        return Confinement()
    if asked == "required":
        return Confinement(require=frozenset(GUARANTEES) - {"cpu_capped"})
    if isinstance(asked, (set, frozenset)):
        return Confinement(require=frozenset(asked))  # pyright: ignore[reportUnknownArgumentType] - checked there
    raise ValueError(
        'confinement must be "auto", "required", "off", a set of guarantees, or a Confinement, '
        f"not {asked!r}; the guarantees are: {', '.join(GUARANTEES)}"
    )
