"""The script that a kernel's Python runs: it seals the process and becomes the kernel.

Any Python that has ipykernel and msgspec runs `python launch.py CONFIG [GUARDIAN]`, where CONFIG is a JSON file of the
host and GUARDIAN the process that must still be its parent. The package is mounted by its path, without
`kernel_bridge/__init__.py`: nothing of ours need be installed there, and nothing of the host side is imported.
"""

from __future__ import annotations

import gc
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


def main() -> None:
    gc.disable()  # until the kernel is up: imports make much and leave no garbage
    with open(sys.argv[1], encoding="utf-8") as file:
        config: Any = json.load(file, object_hook=lambda fields: types.SimpleNamespace(**fields))
    guardian = int(sys.argv[2]) if len(sys.argv) > 2 else None
    del sys.argv[1:]
    del sys.path[0]  # this file's folder
    _mount_package()
    if hasattr(config, "trial"):
        _try(config.seal, config.trial)
        return
    if os.name == "posix":
        os.setpgid(0, 0)  # the guardian interrupts this group, which must not be the wrapper's
    _seal(config.seal)
    if guardian is not None and os.getppid() != guardian:
        # The system tells only of a parent that ends from now on, and of no other process.
        sys.exit("its guardian ended before it could end with it, or `python` is a script that starts it without exec")
    # Not before the seal: an earlier kernel of this session may have left modules there to be imported unsealed.
    os.chdir(config.working_directory)
    sys.path[:] = ["", *sys.path, *config.extra_path]  # the working directory, as in any interactive Python
    from kernel_bridge.inside.early_kernel import run

    run(config)


def _seal(spec: Any) -> None:
    if spec is not None:
        from kernel_bridge.inside.seal import seal

        spec.rlimits = vars(spec.rlimits)
        seal(spec)


def _try(spec: Any, answer: str) -> None:
    """Seal, and write into a file how that went: null, or the error's text and number."""
    refused = None
    try:
        _seal(spec)
    except OSError as error:
        refused = [str(error), error.errno]
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(refused, file)


if __name__ == "__main__":
    main()
