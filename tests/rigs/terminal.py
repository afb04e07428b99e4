"""A terminal for the real Jupyter console: the same whoever runs the tests, and on however slow a machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

__all__ = ["console_environment"]


def console_environment(folder: Path) -> dict[str, str]:
    """An environment in which the console finds no settings but these, and writes nothing outside of `folder`."""
    # After a second without an answer it would take Enter for the beginning of another line.
    settings = {"ZMQTerminalInteractiveShell": {"kernel_is_complete_timeout": 60.0}}
    (folder / "config").mkdir()
    (folder / "config" / "jupyter_console_config.json").write_text(json.dumps(settings), encoding="utf-8")
    places = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    return {**os.environ, **places, "IPYTHONDIR": str(folder / "ipython"), "TERM": "xterm"}
