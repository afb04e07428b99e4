"""The checks of what a session or an interpreter is made with: each names the option, what came and what is accepted.

Knows no kernel and no DSPy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from kernel_bridge.cells import Limits
from kernel_bridge.confine import Confinement, limits_asked

__all__ = ["check_session_options", "check_tools", "refuse_unless"]


def refuse_unless(fits: bool, name: str, accepted: str, value: Any) -> None:
    """Raises: ValueError, unless the option's value fits."""
    if not fits:
        raise ValueError(f"{name} must be {accepted}, not {repr(value)[:200]}")


def check_session_options(
    *, python: Any, limits: Any, confinement: str | Confinement | frozenset[str] | set[str], restarts: Any,
    checkpoint: Any, runtime_dir: Any, checkpoint_file: Any, on_death: Any,
) -> None:  # fmt: skip
    """Raises: ValueError, for the first option that is not what it must be. Whether a path exists, the start tells."""
    paths = {"python": python, "runtime_dir": runtime_dir, "checkpoint_file": checkpoint_file}
    for name, value in paths.items():
        is_path = value is None or (isinstance(value, (str, os.PathLike)) and bool(os.fspath(value)))  # pyright: ignore[reportUnknownArgumentType]
        refuse_unless(is_path, name, "a path or None", value)
    refuse_unless(limits is None or isinstance(limits, Limits), "limits", "a Limits or None", limits)
    whole = isinstance(restarts, int) and not isinstance(restarts, bool)
    refuse_unless(whole and restarts >= 0, "restarts", "a whole number of 0 or more", restarts)
    refuse_unless(isinstance(checkpoint, bool), "checkpoint", "True or False", checkpoint)
    kept = checkpoint or checkpoint_file is None
    refuse_unless(kept, "checkpoint_file", "None where checkpoint is False", checkpoint_file)
    refuse_unless(on_death is None or callable(on_death), "on_death", "a function or None", on_death)
    if confinement != "off":
        limits_asked(confinement)


def check_tools(tools: Any) -> None:
    """Raises: ValueError, unless it maps names to callables. Which names will do, `dispatch.check_names` knows."""
    accepted = "a dict from names to functions"
    if tools is None:
        return
    refuse_unless(isinstance(tools, Mapping), "tools", accepted, tools)
    wrong = {name: tool for name, tool in tools.items() if not callable(tool)}
    refuse_unless(not wrong, "tools", accepted, wrong)
