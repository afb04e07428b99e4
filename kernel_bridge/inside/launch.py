"""The first file a kernel's Python runs: fork a guardian, set the limits, become the kernel.

Run as a script, by any Python that has ipykernel and msgspec: `python launch.py CONFIG`, where CONFIG is a JSON file
written by the host. It puts this package on the path without running `kernel_bridge/__init__.py`, so that a kernel
in a foreign environment needs nothing installed there and none of the host side is imported.
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any


def _mount_package() -> None:
    """Make `kernel_bridge.wire` and `kernel_bridge.inside` importable, and nothing else of ours run."""
    here = os.path.dirname(os.path.abspath(__file__))
    package = types.ModuleType("kernel_bridge")
    package.__path__ = [os.path.dirname(here)]
    sys.modules["kernel_bridge"] = package


def _set_limits(limits: dict[str, list[int]]) -> None:
    import resource

    for name, (soft, hard) in limits.items():
        which = getattr(resource, name)
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        config: dict[str, Any] = json.load(file)
    del sys.argv[1:]
    sys.path[0] = ""  # the working directory, as in any interactive Python; not this file's folder
    sys.path.extend(config["extra_path"])
    _mount_package()
    if config["guardian"] is not None:
        from kernel_bridge.inside.guardian import fork_under_guard

        fork_under_guard(config["guardian"])
        _set_limits(config["rlimits"])
    from kernel_bridge.inside.app import run

    run(config)


if __name__ == "__main__":
    main()
