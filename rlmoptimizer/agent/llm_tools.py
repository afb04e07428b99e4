"""The agent's tools that ask the sub-LM, and the meter that every prompt passes first."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import contextvars
import functools
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import dspy
from dspy.utils.exceptions import format_error_for_lm

from kernel_bridge.text import printable_line
from kernel_bridge.threads.daemon_pool import DaemonPool
from rlmoptimizer.agent.call_gate import CallGate
from rlmoptimizer.errors import BudgetExceededError, add_note
from rlmoptimizer.events import BudgetCharged, Emitter
from rlmoptimizer.lms.failures import failure_kind
from rlmoptimizer.records import LM_FAILURES
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import UnitLedger
from rlmoptimizer.spending.usage_meter import UsageMeter

__all__ = ["PURPOSE", "Paid", "SubLMMeter", "checked_llm_tools"]

logger = logging.getLogger(__name__)

PURPOSE = "llm_query"  # of every charge for a sub-LM prompt
_LONGEST_PROMPT = 1_000_000  # characters
_MOST_PROMPTS = 1000  # of one batch
_AT_ONCE = 8  # prompts of one batch under way, as in DSPy


class SubLMMeter:
    """Every prompt to the sub-LM passes `reserve` first, however the agent sends it. Thread-safe.

    `reserve` and `asking` wait while a run on val is under way, and raise `OptimizationStopped` when the agent is gone.
    `dspy.RLM` and its sub-agents take it for their own counter, of which they call `reserve` only.
    """

    def __init__(
        self,
        ceiling: int,
        ledger: UnitLedger,
        emitter: Emitter,
        gate: CallGate,
        usage: UsageMeter | None = None,
        calls: int = 0,
        waiting: Callable[[int], AbstractContextManager[object]] = lambda _: nullcontext(),
    ) -> None:
        self._ceiling = ceiling  # prompts in one compile
        self._ledger = ledger
        self._usage = usage if usage is not None else UsageMeter(CostLedger())
        self._emitter = emitter
        self._lock = threading.Lock()
        self.calls = calls  # earlier processes' too
        self._warned = False
        self._waiting = waiting  # entered for so many prompts while they are answered
        self._gate = gate  # closed when the agent is gone: its sub-agents must not go on spending

    def reserve(self, n: int = 1) -> None:
        """Spend `n` units for `n` prompts that are about to be sent.

        Raises `BudgetExceededError` when all `n` do not fit under the ceiling or into the budget, `CostExceededError`
        when they are expected to cost more than may be spent; nothing is spent then.
        """
        # One lock over both: else a thread that the ledger refuses could hold a place under the ceiling for a moment.
        with self._gate.passing(), self._lock:
            self._check_ceiling(n)
            with self._ledger.reserve(n, PURPOSE) as slot:
                self._usage.ledger.admit(n)
                slot.settle(n)
            self.calls += n
        self._emitter.emit(BudgetCharged(units=n, left=self._ledger.left))

    def check(self) -> None:
        """Raise what `reserve` would raise for one prompt. Spends nothing."""
        with self._gate.turn(), self._lock:
            self._check_ceiling(1)
            if self._ledger.left < 1:
                raise BudgetExceededError(1, self._ledger.left, PURPOSE)
            self._usage.ledger.check("sub")

    def _check_ceiling(self, n: int) -> None:
        if self.calls + n > self._ceiling:
            raise BudgetExceededError(n, self._ceiling - self.calls, "rlm_max_llm_calls")

    @contextmanager
    def asking(self, n: int = 1) -> Generator[None]:
        """Around `n` prompts while they are answered. Raises an `LMError` when max_cost_usd has been used up."""
        with self._gate.turn(), self._usage.calling("sub", n):
            if self._usage.ledger.reached:
                # Prompts admitted with these cost more than expected. An `LMError` costs a batch one answer only.
                raise dspy.LMError("max_cost_usd is used up; this prompt was not sent")
            try:
                with self._waiting(n):
                    yield
            except Exception as error:
                self._warn_once(error)
                raise
            except BaseException as error:
                add_note(error, "Raised while the sub-LM was asked")
                raise

    def _warn_once(self, error: Exception) -> None:
        """Warn the user, once; the agent gets every error."""
        if self._warned or failure_kind(error) not in LM_FAILURES:
            return
        self._warned = True
        logger.warning(
            "A prompt to the sub-LM failed (%s: %s). The agent is told, and goes on; this is said once",
            type(error).__name__,
            printable_line(str(error))[:300],
        )


class Paid:
    """Stands in for the meter for prompts that have passed it already."""

    def reserve(self, n: int = 1) -> None:
        """Spends nothing."""


def checked_llm_tools(
    ask: Callable[[str], str],
    reserve: Callable[[int], None],
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Callable[..., Any]]:
    """DSPy's two tools, which check a prompt before it is paid.

    `ask` sends one prompt after `reserve`. `turn` is entered around every call.
    """

    def llm_query(prompt: Any) -> str:
        """Ask the sub-LM, which knows nothing but the prompt. 1 unit. Returns its answer."""
        text = _text(prompt, "prompt")
        with turn():
            reserve(1)
            return ask(text)

    def llm_query_batched(prompts: Any) -> list[str]:
        """Ask it several things at once. 1 unit per prompt.

        Returns the answers in the order of the prompts; "[ERROR] ..." in the place of one that failed.
        """
        if not isinstance(prompts, (list, tuple)):
            # A text is a sequence too: every single letter of it would be asked and paid.
            raise TypeError(f"prompts must be a list of texts, got {type(prompts).__name__}; nothing was spent")
        given = cast("Sequence[Any]", prompts)
        if len(given) > _MOST_PROMPTS:
            raise ValueError(
                f"got {len(given):,} prompts, and at most {_MOST_PROMPTS:,} are taken in one call; nothing was spent"
            )
        texts = [_text(text, f"prompts[{number}]") for number, text in enumerate(given)]
        if not texts:
            return []
        with turn():
            reserve(len(texts))
            return _answers(ask, texts)

    return {"llm_query": llm_query, "llm_query_batched": llm_query_batched}


def _answers(ask: Callable[[str], str], texts: Sequence[str]) -> list[str]:
    """Several at once. On daemon threads: with DSPy's own tool an interrupted compile would wait for the answers."""
    pool = DaemonPool(min(len(texts), _AT_ONCE), "rlmoptimizer-sub-lm")
    answers: list[Future[str]] = [Future() for _ in texts]

    def answer(future: Future[str], text: str) -> None:
        try:
            future.set_result(ask(text))
        except dspy.LMError as error:
            future.set_result(f"[ERROR] {format_error_for_lm(error)}")
        except BaseException as error:  # noqa: BLE001 - raised below, on the thread that asked
            future.set_exception(error)

    try:
        for future, text in zip(answers, texts, strict=True):
            pool.submit(functools.partial(contextvars.copy_context().run, functools.partial(answer, future, text)))
        wait(answers)
    finally:
        pool.close()
    return [future.result() for future in answers]


def _text(prompt: Any, name: str) -> str:
    if not isinstance(prompt, str):
        raise TypeError(f"{name} must be a text, got {type(prompt).__name__}; nothing was spent")
    if len(prompt) > _LONGEST_PROMPT:
        raise ValueError(
            f"{name} has {len(prompt):,} characters, and at most {_LONGEST_PROMPT:,} are taken; nothing was spent"
        )
    if not prompt.strip():
        raise ValueError(f"{name} is empty; nothing was spent")
    # No provider takes a lone surrogate; DSPy would say so after the prompt was paid.
    return prompt.encode("utf-8", "replace").decode("utf-8")
