"""What would confine the agent's kernel here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernel_bridge import KernelInterpreter, KernelInterpreterFactory
from kernel_bridge.confine import expected_report
from kernel_bridge.errors import BridgeError
from rlmoptimizer.check.report import KernelFound

__all__ = ["KernelLook", "kernel_found"]


@dataclass(frozen=True, slots=True)
class KernelLook:
    """What was found, and what is to be said of it."""

    found: KernelFound | None  # None: it cannot be told
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def kernel_found(kernel: object) -> KernelLook:
    """Look at what the setting `kernel` would be given. Starts a trial program, if this process has started none."""
    if kernel is None or kernel is KernelInterpreter:
        options: Mapping[str, Any] = {}
    elif isinstance(kernel, KernelInterpreterFactory):
        options = kernel.options
    else:
        return KernelLook(None, warnings=("the interpreter that `kernel` makes does not say how it is confined",))
    try:
        limits, report = expected_report(options.get("confinement", "auto"), options.get("runtime_dir"))
    except (BridgeError, ValueError, OSError) as error:
        return KernelLook(None, (f"the agent's kernel cannot be started: {error}",))
    found = KernelFound(report.line(), dict(report.missing))
    if lacking := [f"{name}: {report.missing[name]}" for name in sorted(limits.require & set(report.missing))]:
        said = "; ".join(lacking)
        return KernelLook(found, (f"this machine does not give the confinement that `kernel` asks for: {said}",))
    unkept = [name for name in ("no_network", "filesystem_allowlist") if name in report.missing]
    if not unkept:
        return KernelLook(found)
    said = f"the agent's code would not be kept from your network or your files (missing: {', '.join(unkept)})"
    return KernelLook(found, warnings=(f"{said}; `rlmoptimizer probe` says what would mend it",))
