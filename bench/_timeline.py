"""The timeline of a compile, from the start of a process that runs `example.py --quiet`. For `_profile.py compile`.

Each line is a part when it ends: seconds since the process began, how long it took, CPU seconds of this process until
then, the thread, and what it was. Parts of different threads lie beside each other. Of a kernel, the CPU that it took.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PARTS = {
    "rlmoptimizer.optimizer": ("RLMDocstringOptimizer.compile",),
    "rlmoptimizer.compilation.stored_compile": ("describe_setup", "open_store"),
    "rlmoptimizer.compilation.setup": ("Setup.checked",),
    "rlmoptimizer.compilation.compilation": ("make_parts", "agent_inputs", "attach_record", "emit_begin", "emit_end"),
    "rlmoptimizer.compilation.final_choice": ("FinalChoice.make",),
    "rlmoptimizer.evaluation.host_runs": ("HostRuns.baseline",),
    "rlmoptimizer.agent.race": ("Race.run",),
    "rlmoptimizer.agent.rlm_agent": ("Agent.__init__", "Agent._execute_iteration", "Agent._execute_code"),
    "rlmoptimizer.agent.kernels": ("AgentKernels.wait_started", "AgentKernels.close"),
    "kernel_bridge.confine.probing": ("_why_not",),
    "kernel_bridge.live.warm_kernels": ("WarmKernel.start",),
    "kernel_bridge.live.kernel_starter": ("KernelStarter.successor",),
    "kernel_bridge.live.kernel": ("LiveKernel.__init__", "LiveKernel.close"),
}


def _begun() -> float:
    """When this process began, on the clock of `time.monotonic`."""
    with open("/proc/self/stat", encoding="ascii") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _tell(what: str, seconds: float) -> None:
    now = time.monotonic() - _BEGUN
    thread = threading.current_thread().name
    print(f"{now:7.3f} {seconds:7.3f} {time.process_time():7.3f}  {thread[:20]:20}  {what}", file=sys.stderr)


def _timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        began, clock = time.monotonic(), None
        if name == "LiveKernel.close":
            clock = args[0].process.cpu_clock()
        used = "" if clock is None or not (cpu := clock()) else f", whose kernel took {cpu:.3f} s of CPU"
        try:
            return function(*args, **kwargs)
        finally:
            _tell(name + used, time.monotonic() - began)

    return call


def _watch(module: str, name: str) -> None:
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    found = vars(owner)[last]
    timed = _timed(name, getattr(found, "__func__", found))
    setattr(owner, last, classmethod(timed) if isinstance(found, classmethod) else timed)


_BEGUN = _begun()

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
    for needed in ("dspy", "rlmoptimizer.optimizer", "example"):
        before = time.monotonic()
        example: Any = importlib.import_module(needed)
        _tell(f"import {needed}", time.monotonic() - before)
    for home, parts in _PARTS.items():
        for watched in parts:
            _watch(home, watched)
    with contextlib.redirect_stdout(io.StringIO()):
        example.main(["--quiet"])
    _tell("the end of the program", time.monotonic() - _BEGUN)
