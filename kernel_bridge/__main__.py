"""`python -m kernel_bridge`: what this machine can give a kernel, which sessions live, a console on one of them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kernel_bridge.confine import probe
from kernel_bridge.console import attach, table
from kernel_bridge.errors import StartupFailed
from kernel_bridge.files.live_sessions import LiveSession, live_sessions


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernel_bridge", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("probe", help="show which guarantees this machine can give, and how")
    listing = commands.add_parser("list", help="show the live sessions of this user with their connection files")
    attaching = commands.add_parser("attach", help="open a Jupyter console on a live session")
    attaching.add_argument("id", nargs="?", help="the session's id from `list`; not needed when there is only one")
    for command in (listing, attaching):
        command.add_argument("--runtime-dir", type=Path, help="where to look, if the sessions were given a place")
    asked = parser.parse_args(argv)
    try:
        if asked.command == "probe":
            return _show(probe().table())
        sessions = live_sessions(asked.runtime_dir)
    except StartupFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    if asked.command == "list":
        return _show(table(sessions))
    return _attach(sessions, asked.id)


def _show(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever reads, `head` for one, has enough. Python would try once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _attach(sessions: list[LiveSession], id: str | None) -> int:
    fitting = [session for session in sessions if id is None or session.id.startswith(id)]
    if len(fitting) == 1:
        return attach(fitting[0])
    if not fitting:
        wanted = "" if id is None else f" whose id starts with {id!r}"
        print(f"there is no live session{wanted}", file=sys.stderr)
    else:
        print(f"which one? name its id:\n{table(fitting)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
