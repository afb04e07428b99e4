"""Makes an environment in which every Python of this project lacks what macOS or Windows lacks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_CUSTOMIZE = """
import sys
sys.path.insert(0, {here!r})
from lacking import install
del sys.path[0]
install({system!r}, {python!r})
"""
# `-I -S`, with which a guardian starts, leaves out sitecustomize.
_PYTHON = """#!/bin/sh
if [ "$1" = -I ]; then
    shift 2
    exec {real} -I -S {begin} {system} {python} "$@"
fi
exec {real} "$@"
"""


def make_system(system: str, folder: Path) -> dict[str, str]:
    """Make in a folder what gives a Python the view of that system; the environment to start one with.

    Args:
        system: "macos" or "windows".
    """
    python = folder / "python"
    begin = _HERE / "begin.py"
    python.write_text(_PYTHON.format(real=sys.executable, begin=begin, system=system, python=python))
    python.chmod(0o755)
    (folder / "sitecustomize.py").write_text(_CUSTOMIZE.format(here=str(_HERE), system=system, python=str(python)))
    path = os.pathsep.join(filter(None, (str(folder), str(_HERE), str(_HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PORTABLE_SYSTEM": system}
