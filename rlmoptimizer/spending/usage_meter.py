"""The usage meter hands the LM calls that it hears of to the cost ledger, and names models without a known price."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import dspy

from kernel_bridge.text import printable_line
from rlmoptimizer.records import LMCall, Role
from rlmoptimizer.spending.call_meter import CallMeter, HeardCall
from rlmoptimizer.spending.cost_ledger import CostLedger

__all__ = ["UsageMeter"]

logger = logging.getLogger(__name__)


class UsageMeter(CallMeter):
    """Tells a ledger of every LM call that was answered within `role`, here or in a worker. Thread-safe.

    Args:
        lms: those whose own history must be kept clean where DSPy is set to keep none.
        on_failure: called when a call could not be written down, in the thread that made it.
    """

    def __init__(
        self,
        ledger: CostLedger,
        lms: Iterable[dspy.BaseLM] = (),
        on_failure: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        super().__init__(lms)
        self.ledger = ledger
        self._on_failure = on_failure
        self._unpriced: dict[str, list[Role]] = {}  # models whose price is not known -> the roles they had
        self._why_unpriced = ""  # of the first of them
        self._is_limited = ledger.state().limit is not None
        self._closed = False

    @contextmanager
    def calling(self, role: Role, count: int = 1) -> Generator[None]:
        """`role` for `count` calls at once, whose expected cost is set aside meanwhile."""
        with self.ledger.calling(role, count), self.role(role):
            yield

    def close(self) -> None:
        """Count nothing more: what is still under way belongs to nobody. Idempotent."""
        self._closed = True
        try:
            self.ledger.flush()
        except Exception:  # at the end of everything, where it would hide how that came
            logger.warning("The last LM calls could not be written down", exc_info=True)

    def count(self, call: LMCall, *, why_unpriced: object = None) -> None:
        """Hand a call over to the ledger."""
        if self._closed:
            return
        if call.cost is None:
            self._note_unpriced(call, why_unpriced)
        try:
            self.ledger.record(call)
        except Exception as error:  # noqa: BLE001 - the LM's caller is foreign code; whoever owns the meter raises it
            if not self._closed:
                self._on_failure(error)

    def count_heard(self, calls: Iterable[HeardCall]) -> None:
        """Count calls that workers have made."""
        for heard in calls:
            self.count(heard.call, why_unpriced=heard.why_unpriced)

    def warn_of_unpriced(self) -> None:
        """Say in one line of which models no price is known; where there is a limit, that was said at their calls."""
        with self._lock:
            models = {model: tuple(roles) for model, roles in self._unpriced.items()}
        if models and not self._is_limited:
            listed = ", ".join(f"{model} ({', '.join(roles)} LM)" for model, roles in models.items())
            logger.warning("No price is known of %s%s: its cost in the result is None", listed, self._why_unpriced)

    def _note_unpriced(self, call: LMCall, reason: object) -> None:
        why = f" ({printable_line(str(reason))})" if reason else ""
        with self._lock:
            first = not self._unpriced
            roles = self._unpriced.setdefault(call.model, [])
            is_new = not roles
            if call.role not in roles:
                roles.append(call.role)
            if first:
                self._why_unpriced = why
        if is_new and self._is_limited:
            logger.warning(
                "The price of %s (%s LM) is not known%s: its cost is given as None, and counts against no limit",
                call.model,
                call.role,
                why,
            )
