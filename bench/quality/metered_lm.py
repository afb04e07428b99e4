"""LMs whose calls are written down: by role, with tokens and seconds, in a file that outlives a killed process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.lm15 import Response
from dspy.utils.callback import BaseCallback

__all__ = ["CallLog", "MeteredLM", "RoleUsage"]


@dataclass(slots=True)
class RoleUsage:
    """The LM calls of one role."""

    calls: int = 0  # all
    cached: int = 0  # of them, answered from DSPy's cache; they cost neither tokens nor time
    failed: int = 0  # of them, that raised
    prompt_tokens: int = 0  # of calls that were not cached, as the LM reports them
    completion_tokens: int = 0
    seconds: float = 0.0  # spent in calls, summed over threads

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 1)}


class CallLog:
    """One JSON line for what becomes known of a call, and one for each process that starts. Any number of threads."""

    def __init__(self, path: Path, *, anew: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        self._file = path.open("w" if anew else "a", encoding="utf-8")
        self._write({"started": time.time()})

    def __enter__(self) -> CallLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __deepcopy__(self, memo: object) -> CallLog:
        return self  # DSPy copies LMs

    def answered(self, role: str, prompt: int, completion: int, *, cached: bool) -> None:
        self._write({"role": role, "cached": cached, "prompt": prompt, "completion": completion})

    def ended(self, role: str, seconds: float, *, failed: bool) -> None:
        self._write({"role": role, "seconds": seconds, "failed": failed})

    def usage(self) -> dict[str, RoleUsage]:
        """By role, of every process so far."""
        found: dict[str, RoleUsage] = {}
        for line in self._lines():
            if "role" not in line:
                continue
            role = found.setdefault(line["role"], RoleUsage())
            if "seconds" in line:
                role.calls += 1
                role.failed += line["failed"]
                role.seconds += line["seconds"]
            elif line["cached"]:
                role.cached += 1
            else:
                role.prompt_tokens += line["prompt"]
                role.completion_tokens += line["completion"]
        return found

    @property
    def processes(self) -> int:
        """How many processes have worked at it."""
        return sum("started" in line for line in self._lines())

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            if not self._file.closed:  # an arm may leave a call behind, which nobody waits for
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()

    def _lines(self) -> list[dict[str, Any]]:
        with self._lock:
            text = self._path.read_text(encoding="utf-8")
        # A killed process may leave half a line.
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


class MeteredLM(dspy.LM):
    """A `dspy.LM` that writes its calls into a log, under one role; so do its copies."""

    def __init__(self, model: str, *, role: str, log: CallLog, **options: Any) -> None:
        super().__init__(model, callbacks=[_Stopwatch(role, log)], **options)
        self._role = role
        self._log = log

    def update_history(self, entry: dict[str, Any]) -> None:
        usage: Mapping[str, Any] = entry.get("usage") or {}
        prompt, completion = (
            next((int(usage[name]) for name in names if usage.get(name) is not None), 0)
            for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
        )
        self._log.answered(self._role, prompt, completion, cached=not usage and _was_cached(entry.get("response")))
        super().update_history(entry)


class _Stopwatch(BaseCallback):
    def __init__(self, role: str, log: CallLog) -> None:
        self._role = role
        self._log = log
        self._begun: dict[str, float] = {}

    def __deepcopy__(self, memo: object) -> _Stopwatch:
        return self

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._begun[call_id] = time.monotonic()

    def on_lm_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        begun = self._begun.pop(call_id, None)
        if begun is not None:
            self._log.ended(self._role, time.monotonic() - begun, failed=exception is not None)


def _was_cached(response: Any) -> bool:
    """Whether DSPy took an answer from its cache: the call has no usage then, and the answer still has its own."""
    responses = response if isinstance(response, tuple) else (response,)
    for one in responses:
        if isinstance(one, Response):
            if one.usage.input_tokens is not None or one.usage.output_tokens is not None:
                return True
        elif (isinstance(one, Mapping) and one.get("cache_hit")) or getattr(one, "cache_hit", False):
            return True
    return False
