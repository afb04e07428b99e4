"""Metrics that end the process they run in, for tests of executors. They are `toy.metric` otherwise."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import dspy
import toy

__all__ = ["Deadly", "Waits"]


class Deadly:
    """Kills its process on each message that begins with one of `messages`, the first `times` times."""

    def __init__(self, directory: Path, *messages: str, times: int = 1) -> None:
        self._directory = directory
        self._messages = messages
        self._times = times

    def __call__(self, gold: dspy.Example, prediction: dspy.Prediction) -> Any:
        message = next((start for start in self._messages if gold.message.startswith(start)), None)
        if message is not None:
            for number in range(self._times):
                try:
                    (self._directory / f"{message.strip()} {number}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(600)
        return toy.metric(gold, prediction)

    @property
    def deaths(self) -> int:
        return len(list(self._directory.iterdir()))


class Waits:
    """At the first message that begins with `message` it writes its process id to a file, and waits until killed."""

    def __init__(self, file: Path, message: str) -> None:
        self.file = file
        self._message = message

    def __call__(self, gold: dspy.Example, prediction: dspy.Prediction) -> Any:
        if gold.message.startswith(self._message) and not self.file.exists():
            new = self.file.with_suffix(".new")
            new.write_text(str(os.getpid()))
            new.rename(self.file)
            time.sleep(600)
        return toy.metric(gold, prediction)
