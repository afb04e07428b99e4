"""The costs of a compile: a ledger in whole picodollars, so sums are exact in whatever order calls come back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from rlmoptimizer.errors import CostExceededError
from rlmoptimizer.records import ROLES, LMCall, Role, RoleUsage, dollars, picodollars
from rlmoptimizer.spending.ledger import Keep, Ledger

__all__ = ["BUFFER_SECONDS", "CallJournal", "CostLedger"]

BUFFER_SECONDS: Final = 0.1  # how long a call of the program may wait to be written down with others


class CallJournal(Protocol):
    """Where LM calls are kept; the run store is one."""

    def record_lm_calls(self, *calls: LMCall) -> None: ...  # they outlive this process when this returns
    def lm_usage(self) -> Mapping[Role, RoleUsage]: ...  # what all calls so far amount to
    def evaluated_examples(self) -> int: ...  # with a result so far, those of the baseline included


class _Forecast:
    """Counts calls by role, and says in picodollars what the next ones may cost: 0 until a price is known."""

    def __init__(self, usage: Mapping[Role, RoleUsage], examples: int) -> None:
        self.usage: dict[Role, RoleUsage] = {role: usage.get(role, RoleUsage()) for role in ROLES}
        self.examples = examples  # that were evaluated
        self._latest_root = 0  # picodollars of its last priced call

    def count(self, call: LMCall) -> None:
        self.usage[call.role] += RoleUsage.of(call)
        if call.role == "root" and call.cost:
            self._latest_root = call.cost

    def call(self, role: Role) -> int:
        usage = self.usage[role]
        mean = -(-usage.cost // usage.priced_calls) if usage.priced_calls else 0
        # The agent's context grows from turn to turn, so its last call tells more than the mean.
        return max(mean, self._latest_root) if role == "root" else mean

    def example(self) -> int:
        # As if nothing came from the cache: prompts that were never tried before are not in it.
        usage = self.usage["eval"]
        if not usage.priced_calls or not self.examples:
            return 0
        return -(-usage.cost * usage.calls // (usage.priced_calls * self.examples))


class CostLedger(Ledger):
    """Counts LM calls by role and, with a limit, says what may still be begun. Thread-safe.

    What a call costs is known only when it is over. Until then a forecast is set aside: for calls under way
    (`calling`), for the examples of a `reserve` block, and for what comes at the end (`hold_back`). Nothing is begun
    that does not fit, and what is refused has spent nothing; what has begun is finished. So once the limit is reached,
    more is spent only on the examples, prompts and turns that are under way at that moment. Calls without a known price
    count as calls, not as spending.

    Calls are in the journal when `record` returns. Without a limit those of the role "eval" are written together, up to
    `BUFFER_SECONDS` later or at the next `flush`: there may be a thousand a second.
    """

    def __init__(
        self,
        limit_usd: float | None = None,
        journal: CallJournal | None = None,
        *,
        spent_before: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit_usd` None: no limit. What the journal already holds counts as spent. `clock`: seconds.

        `spent_before`: picodollars that count as spent too, and are no usage of this optimization.
        """
        limit = None if limit_usd is None else picodollars(limit_usd)
        if limit is None and limit_usd is not None:
            raise ValueError(f"{limit_usd!r} is not an amount of dollars")
        kept: Mapping[Role, RoleUsage] = {} if journal is None else journal.lm_usage()
        super().__init__(limit, spent_before + sum(usage.cost for usage in kept.values()))
        self._forecast = _Forecast(kept, 0 if journal is None else journal.evaluated_examples())
        self._for_calls = 0  # of what is reserved: for prompts and turns under way
        self._held = 0  # of what is reserved: for the end, see `hold_back`
        self._admitted: deque[int] = deque()  # of that: for each prompt that was admitted and has not begun
        self._journal = journal
        self._clock = clock
        self._writing = threading.Lock()  # of the journal; taken before `_lock`, never the other way round
        self._unwritten: list[LMCall] = []
        self._written_at = clock()

    def usage(self) -> dict[Role, RoleUsage]:
        """What every role has used so far."""
        with self._lock:
            return dict(self._forecast.usage)

    @property
    def reached(self) -> bool:
        """Whether the limit is spent but for what is held back, so that not even what was admitted may begin."""
        return self._limit is not None and self._spent + self._held >= self._limit

    # what is kept for the end

    def hold_back(self, examples: int) -> None:
        """Set aside what so many examples are expected to cost; nothing else can spend it until `release`.

        Raises `CostExceededError` when it does not fit; nothing is held back then.
        """
        with self._lock:
            each, left = self._price(), self._left()
            if left is None:
                return
            self._refuse(examples, each, left, "test")
            self._held += examples * each
            self._reserved += examples * each

    def release(self) -> None:
        """What was held back may be spent."""
        with self._lock:
            self._reserved -= self._held
            self._held = 0

    # what may begin

    def check(self, role: Role, count: int = 1) -> None:
        """Raise `CostExceededError` when `count` more calls of `role` do not fit."""
        with self._lock:
            self._refuse_calls(role, count)

    def admit(self, count: int) -> None:
        """As `check("sub", count)`, and set aside what they are expected to cost until they are `calling`."""
        with self._lock:
            each = self._refuse_calls("sub", count)
            self._admitted.extend([each] * count)
            self._set_aside(each * count)

    @contextmanager
    def calling(self, role: Role, count: int = 1) -> Generator[None]:
        """What `count` calls of `role` are expected to cost is set aside for the block. Never refuses."""
        with self._lock:
            admitted = min(count, len(self._admitted)) if role == "sub" else 0
            more = self._forecast.call(role) * (count - admitted)
            self._set_aside(more)
            expected = more + sum(self._admitted.popleft() for _ in range(admitted))
        try:
            yield
        finally:
            with self._lock:
                self._set_aside(-expected)

    # what was spent

    def record(self, call: LMCall) -> None:
        """Count a call that was answered."""
        with self._lock:
            # Counted also if it cannot be written down: the money is gone.
            self._forecast.count(call)
            self._spent += call.cost or 0
            if self._journal is None:
                return
            self._unwritten.append(call)
            may_wait = self._limit is None and call.role == "eval"
            if may_wait and self._clock() - self._written_at < BUFFER_SECONDS:
                return
        self.flush()

    def flush(self) -> None:
        """Write down what is not in the journal yet."""
        with self._writing:
            with self._lock:
                calls, self._unwritten = self._unwritten, []
                self._written_at = self._clock()
            try:
                if calls and self._journal is not None:
                    self._journal.record_lm_calls(*calls)
            except BaseException:
                with self._lock:
                    self._unwritten[:0] = calls
                raise

    # under the lock

    def _set_aside(self, amount: int) -> None:
        """For calls; negative: it flows back."""
        self._for_calls += amount
        self._reserved += amount

    def _refuse_calls(self, role: Role, count: int) -> int:
        """Refuse calls that do not fit; else give what each is expected to cost."""
        each = self._forecast.call(role)
        if self._limit is not None:
            # The agent may go on with what evaluations in its background have set aside: a refused turn would be its
            # last, and they stop by themselves when the limit is reached.
            aside = self._for_calls + self._held if role == "root" else self._reserved
            self._refuse(count, each, self._limit - self._spent - aside, "llm_query" if role == "sub" else role)
        return each

    def _price(self) -> int:
        return self._forecast.example()

    def _refuse(self, pieces: int, each: int, left: int, purpose: str) -> None:
        if left <= 0 or each * pieces > left:
            fits = max(left, 0) // each if each else None
            raise CostExceededError(dollars(each * pieces), dollars(left), purpose, fits=fits)

    def _settled(self, pieces: int, purpose: str, keep: Keep | None) -> None:
        self._forecast.examples += pieces  # what they cost came with the calls that were made for them
