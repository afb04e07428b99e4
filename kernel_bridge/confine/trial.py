"""The trial of a tier: an empty program run under it, with the real command line and the real seal."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import prepare_files, spawn_command, write_spawn_file
from kernel_bridge.confine.tier import Tier
from kernel_bridge.confine.tier_plain import PLAIN
from kernel_bridge.confine.trial_program import Answer, run_and_read
from kernel_bridge.errors import TransientError, says_transient
from kernel_bridge.files.layout import TRANSCRIPT, Layout
from kernel_bridge.files.private_files import make_file
from kernel_bridge.files.session_directory import SessionDirectory

__all__ = ["why_refused"]

_TRIAL_SECONDS = 60
_ANSWER = TRANSCRIPT  # the file in which a trial says how it went: other code may write to its stdout


def why_refused(tier: Tier, root: Path | None) -> str | None:
    """Why this machine refuses a tier; None: a trial run went well. Root is where sessions live.

    Raises:
        TransientError: there was trouble that says nothing about the tier.
        StartupFailed: there is no directory for it.
        OSError: it cannot be run.
    """
    reason = _try(tier, root)
    if reason is None:
        return None
    # A tier is refused only where the same program runs without it.
    if (plain := _try(PLAIN, root)) is not None:
        raise TransientError(f"not even a program without any confinement runs: {plain}")
    return tier.explain_refusal(reason)


def _try(tier: Tier, root: Path | None) -> str | None:
    directory = SessionDirectory(root)  # a session's: it is found and removed when this process is killed meanwhile
    try:
        layout = directory.next_layout()
        plan = tier.plan(Confinement(), layout, sys.executable)
        config = {"seal": plan.seal, "trial": str(plan.inside.sockets / _ANSWER)}
        make_file(layout.config, json.dumps(config, default=asdict).encode())
        prepare_files(plan, layout)
        if plan.owner is not None:
            directory.let_pass()
        ended = run_and_read(
            spawn_command(write_spawn_file(plan, layout, None)),
            seconds=_TRIAL_SECONDS,
            begins_fresh=True,
            env={**plan.environment, "LC_ALL": "C"},  # errors are recognised by their English words
            cwd=layout.scratch,
        )
        return _read_answer(layout, ended)
    finally:
        directory.remove()


def _read_answer(layout: Layout, ended: Answer) -> str | None:
    try:
        refused: tuple[str, int | None] | None = json.loads((layout.sockets / _ANSWER).read_bytes())
    except (FileNotFoundError, ValueError):
        refused = _without_answer(ended)
    if refused is not None and says_transient(*refused):
        raise TransientError(refused[0])
    return None if refused is None else refused[0]


def _without_answer(ended: Answer) -> tuple[str, int | None]:
    """Why a trial ended before it could say how it went. Raises: TransientError."""
    killed = -ended.status if ended.status < 0 else ended.status - 128
    if killed == getattr(signal, "SIGSYS", None):
        return "a trial run made a system call that is not allowed here", None
    if killed > 0:
        raise TransientError(f"a trial run was killed by signal {killed}")
    said = ended.last_words()
    if not said and not ended.status:
        raise TransientError("a trial run ended without a word")
    return said or f"a trial run ended with status {ended.status}", None
