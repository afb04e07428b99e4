"""What the agent is told of the place where its code runs.

It becomes part of a prompt: short, the same for the same options on the same machine, and true, so that no turn is
wasted on what cannot be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from kernel_bridge.confine import Confinement, ConfinementReport, expected_report
from kernel_bridge.options import SessionOptions

__all__ = ["execution_instructions"]

_ALWAYS = (
    "Code runs as Python cells in a persistent IPython kernel, a process of its own. Variables, imports, functions and "
    "classes persist between cells; top-level `await` works. Output is what is printed plus the value of the last "
    "expression; very long output loses its middle. Host tools and SUBMIT are global functions: `help(tool)` shows "
    "their arguments, they may be called from several threads at once, and a failed call raises an exception you can "
    "catch. Only plain data crosses to the host: None, bool, int, float, str, bytes, lists and dicts with str keys."
)


def execution_instructions(options: SessionOptions) -> str:
    """One paragraph for the agent, for a session with these options.

    Raises:
        StartupFailed: what the machine gives could not be found out now.
    """
    allowed, report = expected_report(options.confinement, options.runtime_dir)
    limits = options.limits
    return " ".join(
        [
            _ALWAYS,
            f"A cell that runs longer than {limits.cell_seconds:g} s, waiting for host tools not counted, or "
            f"{limits.cell_total_seconds:g} s in all, is interrupted with its state kept.",
            _after_a_crash(options.restarts, checkpoint=options.checkpoint),
            *_place(allowed, report),
            *_bounds(allowed, report),
        ]
    )


def _after_a_crash(restarts: int, *, checkpoint: bool) -> str:
    if restarts == 0:
        return "If a cell crashes the kernel, the session is over."
    kept = "with the variables from before that cell, the error says which" if checkpoint else "without any variables"
    return f"If a cell crashes the kernel, a new one starts {kept}, and the cell is not run again."


def _place(allowed: Confinement, report: ConfinementReport) -> Iterator[str]:
    yield "The working directory is an empty scratch directory."
    given = f", and {_listed(sorted(allowed.environment))}" if allowed.environment else ""
    yield f"Of the host's environment only harmless variables such as PATH are passed on{given}."
    if "no_network" in report.in_force:
        yield "There is no network: nothing can be downloaded and no package installed; use what is there."
    else:
        yield "Do not install packages."
    if "filesystem_allowlist" in report.in_force:
        own = ["the working directory", *(["/tmp", "/dev/shm"] if "private_tmp" in report.in_force else [])]
        yield f"Nothing can be written outside of {_listed([*own, *_paths(allowed.writable)])}."
        readable = ["Python", "its packages", "the system's own", *_paths(allowed.read_only), *_paths(allowed.writable)]
        yield f"Files of the host other than {_listed(readable)} cannot be read."
    if "reduced_syscalls" in report.in_force and "private_tmp" not in report.in_force:
        yield "There is no shared memory: what `multiprocessing` needs it for fails; threads and `subprocess` work."


def _bounds(allowed: Confinement, report: ConfinementReport) -> Iterator[str]:
    known = {
        "memory_capped": ("{} of memory", None if allowed.memory_bytes is None else _size(allowed.memory_bytes)),
        "scratch_capped": ("{} of files", None if allowed.scratch_bytes is None else _size(allowed.scratch_bytes)),
        "processes_capped": ("{} processes and threads", allowed.processes),
        "cpu_capped": ("{} s of CPU time for each process", allowed.cpu_seconds),
    }
    bounds = [
        text.format(value) for name, (text, value) in known.items() if value is not None and name in report.in_force
    ]
    if bounds:
        yield f"The kernel may use at most {_listed(bounds)}; what goes beyond fails or ends the kernel."


def _paths(paths: Iterable[str | Path]) -> list[str]:
    return [str(Path(path).absolute()) for path in paths]


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _size(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{round(size / unit, 1):g} {name}"
    return f"{size} bytes"
