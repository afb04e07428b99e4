"""The prompts that are set now: what the agent may make of them, and how much of it is kept."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, cast

import dspy

from rlmoptimizer.errors import PromptUpdateError
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.program import PromptChecker
from rlmoptimizer.text import brief, token_estimate

__all__ = ["CurrentPrompts"]

_LONGEST_PROMPT = 100_000  # characters of a prompt of the agent's; of a student's own they may be more
_LONGEST_NAME = 100  # characters of a step's name in a message
# Setting prompts costs nothing, so it must not fill the disk.
_MOST_UPDATES = 10_000
_MOST_PROMPT_BYTES = 64_000_000


class CurrentPrompts:
    """The prompts of every step as they are set, kept in `store`. A resumed compile has those that were set last.

    Every map that leaves here was checked for `program`. A new text has at most `max_tokens` by `token_estimate` (None:
    no limit); the program's own texts are always taken. Thread-safe.
    """

    def __init__(self, program: dspy.Module, store: RunStore, max_tokens: int | None = None) -> None:
        self._checker = PromptChecker(program)
        self.original = self._checker.original  # of the program as it was given
        self.steps = tuple(self.original)
        self._store = store
        self._max_tokens = max_tokens
        self._lock = threading.Lock()  # of all that follows
        self._updates, self._bytes = store.prompts_set()
        self._longest = max(_LONGEST_PROMPT, *map(len, self.original.values()))
        before = store.prompts()
        if before is None:
            store.set_prompts(self.original)
        self.current = self.original if before is None else self.stored(before)

    def stored(self, prompts: Mapping[str, str]) -> Prompts:
        """A map that was in the store."""
        return self._checker.checked(self.original, prompts)

    def with_changes(self, changes: Any, given: str = "prompts") -> Prompts:
        """The current prompts with the agent's `changes`, which are not set. `given`: the argument that they came as.

        Raises `PromptUpdateError`.
        """
        try:
            if not isinstance(changes, Mapping):
                raise PromptUpdateError(None, f"it must be a dict {{step: text}}, got {type(changes).__name__}")
            texts = cast("Mapping[Any, Any]", changes)
            for step, text in texts.items():
                self._check_size(step, text)
            return self._changed(self.current, texts)
        except PromptUpdateError as refused:
            raise PromptUpdateError(refused.step, refused.reason, given=given) from None

    def update(self, step: Any, text: Any) -> tuple[str, str]:
        """Set the prompt of one step; gives its text before and after. Raises `PromptUpdateError`."""
        self._check_size(step, text)
        with self._lock:
            before = self.current
            after = self._changed(before, {step: text})
            if after != before:
                self._keep(step, after)
                self.current = after
        return before[step], after[step]

    def _changed(self, base: Prompts, changes: Mapping[Any, Any]) -> Prompts:
        after = self._checker.checked(base, changes)
        for step in changes:
            tokens = 0 if after[step] == self.original[step] else token_estimate(after[step])
            if self._max_tokens is not None and tokens > self._max_tokens:
                raise PromptUpdateError(
                    step,
                    f"the text has {tokens:,} tokens (one for every four bytes of UTF-8), and at most "
                    f"{self._max_tokens:,} are taken (max_prompt_tokens); write it shorter",
                )
        return after

    def _keep(self, step: str, prompts: Prompts) -> None:
        if self._updates >= _MOST_UPDATES or self._bytes >= _MOST_PROMPT_BYTES:
            raise PromptUpdateError(
                step,
                f"prompts were set {self._updates:,} times, and {self._bytes:,} bytes of them are kept; no more "
                f"are (at most {_MOST_UPDATES:,} times or {_MOST_PROMPT_BYTES:,} bytes). "
                "evaluate_program(prompts=...) still takes others, and so does SUBMIT",
            )
        self._bytes += self._store.set_prompts(prompts)
        self._updates += 1

    def _check_size(self, step: Any, text: Any) -> None:
        """Raise `PromptUpdateError` for a step that there is not, or a text that is too long as it is or becomes."""
        if not isinstance(step, str) or step not in self.original:
            raise PromptUpdateError(_shown(step), f"there is no such step; the steps are {', '.join(self.steps)}")
        if not isinstance(text, str):
            return
        most, length, became = self._longest, len(text), ""
        if length <= most < length + 7 * text.count("\t"):
            length, became = len(text.expandtabs()), " once its tabs are spaces, as DSPy makes them"
        if length > most:
            raise PromptUpdateError(step, f"the text has {length:,} characters{became}, and at most {most:,} are taken")


def _shown(given: Any) -> str:
    return given[:_LONGEST_NAME] if isinstance(given, str) else brief(given, _LONGEST_NAME)
