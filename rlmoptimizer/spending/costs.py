"""The costs: what LM calls used and cost by role, and a ledger in dollars with a limit. Knows no LM and no DSPy.

Amounts are whole picodollars, so sums are exact, and the same in whatever order calls come back.
Law, at every moment and under any number of threads: spent + reserved + left == limit. What a call costs is known only
when it is over, so `left` is negative for as long as calls turned out dearer than was to be expected.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Protocol, TypeAlias

from rlmoptimizer.errors import CostExceededError
from rlmoptimizer.spending.money import dollars, picodollars

__all__ = [
    "BUFFER_SECONDS",
    "ROLES",
    "CostJournal",
    "CostLedger",
    "CostSlot",
    "CostState",
    "LMCall",
    "Role",
    "RoleUsage",
    "total_usd",
    "usage_dict",
]

Role: TypeAlias = Literal["root", "sub", "eval"]
ROLES: Final[tuple[Role, ...]] = ("root", "sub", "eval")
BUFFER_SECONDS: Final = 0.1  # how long a call of the program may wait to be written down with others


@dataclass(frozen=True, slots=True)
class LMCall:
    """One call of an LM that was answered."""

    role: Role
    model: str
    outcome: Literal["answered", "cached"]  # "cached": by DSPy's cache, so nothing was asked or billed
    prompt_tokens: int | None  # None: not reported
    completion_tokens: int | None  # None: not reported
    cost: int | None  # picodollars; None: the price is not known


@dataclass(frozen=True, slots=True)
class RoleUsage:
    """What the calls of one role amount to."""

    calls: int = 0  # that were answered, those from the cache included
    cached_calls: int = 0  # of these: from the cache
    unreported_calls: int = 0  # of these: the provider said nothing of tokens
    unpriced_calls: int = 0  # of these: the price is not known
    prompt_tokens: int = 0  # as far as reported
    completion_tokens: int = 0  # as far as reported
    cost: int = 0  # picodollars, as far as known

    @classmethod
    def of(cls, call: LMCall) -> RoleUsage:
        answered = call.outcome == "answered"
        return cls(
            calls=1,
            cached_calls=int(not answered),
            unreported_calls=int(answered and call.prompt_tokens is None and call.completion_tokens is None),
            unpriced_calls=int(call.cost is None),
            prompt_tokens=call.prompt_tokens or 0,
            completion_tokens=call.completion_tokens or 0,
            cost=call.cost or 0,
        )

    def __add__(self, other: RoleUsage) -> RoleUsage:
        return RoleUsage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def priced_calls(self) -> int:
        """Calls that a provider answered at a known price."""
        return self.calls - self.cached_calls - self.unpriced_calls

    @property
    def cost_usd(self) -> float | None:
        """Dollars; None when the price of any call is not known."""
        return None if self.unpriced_calls else dollars(self.cost)

    def as_dict(self) -> dict[str, Any]:
        """What people and events get. Tokens are None when calls were answered and none of them reported any."""
        asked = self.calls - self.cached_calls
        silent = 0 < asked == self.unreported_calls
        return {
            "calls": self.calls,
            "cached_calls": self.cached_calls,
            "prompt_tokens": None if silent else self.prompt_tokens,
            "completion_tokens": None if silent else self.completion_tokens,
            "cost_usd": self.cost_usd,
            "known_cost_usd": dollars(self.cost),
            "unpriced_calls": self.unpriced_calls,
        }


def usage_dict(usage: Mapping[Role, RoleUsage]) -> dict[str, dict[str, Any]]:
    """Usage by role as people and events get it."""
    return {role: used.as_dict() for role, used in usage.items()}


def total_usd(usage: Mapping[Role, RoleUsage]) -> float | None:
    """Dollars of all roles together; None when any price is not known."""
    return sum(usage.values(), RoleUsage()).cost_usd


class CostJournal(Protocol):
    """Where calls are kept; the run store is one."""

    def record_lm_calls(self, *calls: LMCall) -> None:
        """Keep calls; they outlive this process when this returns."""
        ...

    def lm_usage(self) -> Mapping[Role, RoleUsage]:
        """What all calls so far amount to."""
        ...

    def evaluated_examples(self) -> int:
        """Examples with a result so far, those of the baseline included."""
        ...


@dataclass(frozen=True, slots=True)
class CostState:
    """One moment of a ledger, in picodollars."""

    limit: int | None  # None: there is none
    spent: int
    reserved: int
    left: int | None  # None: there is no limit; negative: more was spent than was to be expected


class CostSlot:
    """The expected cost of examples that are to be evaluated; made by `CostLedger.examples`."""

    def __init__(self, ledger: CostLedger, each: int, count: int) -> None:
        self.each = each  # picodollars
        self.count = count  # examples without a result
        self._ledger = ledger

    def finish(self, count: int) -> None:
        """`count` examples have their results: what they cost is spent, and nothing is set aside for them any more."""
        self._ledger._finish(self, count)  # pyright: ignore[reportPrivateUsage] - the ledger's own half


class CostLedger:
    """Counts LM calls by role and, with a limit, says what may still be begun. Thread-safe.

    What something will cost is taken to be what such calls have cost so far, which is nothing until one of the role has
    come back with a price. Nothing is begun that does not fit, and what is refused has spent nothing; what has begun is
    finished. So once the limit is reached, more is spent only on the examples, prompts and turns that are under way at
    that moment. Calls without a known price count as calls, not as spending.

    Calls are in the journal when `record` returns. Without a limit those of the role "eval" are written together, up to
    `BUFFER_SECONDS` later or at the next `flush`: there may be a thousand a second.
    """

    def __init__(
        self,
        limit_usd: float | None = None,
        journal: CostJournal | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit_usd` None: no limit. What the journal already holds counts as spent. `clock`: seconds."""
        limit = None if limit_usd is None else picodollars(limit_usd)
        if limit is None and limit_usd is not None:
            raise ValueError(f"{limit_usd!r} is no amount of dollars")
        self._limit = limit
        self._journal = journal
        self._lock = threading.Lock()
        kept: Mapping[Role, RoleUsage] = {} if journal is None else journal.lm_usage()
        self._usage: dict[Role, RoleUsage] = {role: kept.get(role, RoleUsage()) for role in ROLES}
        self._examples = 0 if journal is None else journal.evaluated_examples()
        self._latest_root = 0  # picodollars of its last priced call
        self._calling = 0  # picodollars that prompts and turns under way are expected to cost
        self._admitted: deque[int] = deque()  # of these: of each prompt that was admitted and has not begun
        self._slots: set[CostSlot] = set()
        self._clock = clock
        self._writing = threading.Lock()  # of the journal; taken before `_lock`, never the other way round
        self._unwritten: list[LMCall] = []
        self._written_at = clock()

    # what is known

    def usage(self) -> dict[Role, RoleUsage]:
        """What every role has used so far."""
        with self._lock:
            return dict(self._usage)

    def state(self) -> CostState:
        """All figures of one moment."""
        with self._lock:
            spent, reserved = self._spent(), self._calling + self._set_aside()
        return CostState(self._limit, spent, reserved, None if self._limit is None else self._limit - spent - reserved)

    @property
    def reached(self) -> bool:
        """Whether the limit is spent, so that not even what was admitted may begin."""
        if self._limit is None:
            return False
        with self._lock:
            return self._spent() >= self._limit

    # what may begin

    def check(self, role: Role, count: int = 1) -> None:
        """Raise `CostExceededError` when `count` more calls of `role` do not fit."""
        if self._limit is None:
            return
        with self._lock:
            # The agent may go on with what evaluations in its background have set aside: a refused turn would be its
            # last, and they stop by themselves when the limit is reached.
            self._refuse_calls(role, count, 0 if role == "root" else self._set_aside())

    def admit(self, count: int) -> None:
        """As `check("sub", count)`, and set aside what they are expected to cost until they are `calling`."""
        if self._limit is None:
            return
        with self._lock:
            each = self._refuse_calls("sub", count, self._set_aside())
            self._admitted.extend([each] * count)
            self._calling += each * count

    @contextmanager
    def calling(self, role: Role, count: int = 1) -> Generator[None]:
        """What `count` calls of `role` are expected to cost is set aside for the block. Never refuses."""
        with self._lock:
            admitted = min(count, len(self._admitted)) if role == "sub" else 0
            expected = sum(self._admitted.popleft() for _ in range(admitted))
            more = self._expected_call(role) * (count - admitted)
            self._calling += more
            expected += more
        try:
            yield
        finally:
            with self._lock:
                self._calling -= expected

    @contextmanager
    def examples(self, count: int, purpose: str) -> Generator[CostSlot]:
        """Set aside what `count` examples are expected to cost; what is not finished in the block flows back.

        Raises `CostExceededError` when it does not fit; nothing is spent then.
        """
        with self._lock:
            slot = CostSlot(self, self._expected_example(), count)
            if self._limit is not None:
                left = self._limit - self._spent() - self._calling - self._set_aside()
                self._refuse_if(slot.each, count, left, purpose)
            self._slots.add(slot)
        try:
            yield slot
        finally:
            with self._lock:
                self._slots.discard(slot)

    def record(self, call: LMCall) -> None:
        """Count a call that was answered."""
        with self._lock:
            # Counted also if it cannot be written down: the money is gone.
            self._usage[call.role] += RoleUsage.of(call)
            if call.role == "root" and call.cost:
                self._latest_root = call.cost
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

    def _spent(self) -> int:
        return sum(usage.cost for usage in self._usage.values())

    def _set_aside(self) -> int:
        return sum(slot.each * slot.count for slot in self._slots)

    def _expected_call(self, role: Role) -> int:
        usage = self._usage[role]
        mean = -(-usage.cost // usage.priced_calls) if usage.priced_calls else 0
        # The agent's context grows from turn to turn, so its last call tells more than the mean.
        return max(mean, self._latest_root) if role == "root" else mean

    def _expected_example(self) -> int:
        # As if nothing came from the cache: prompts that were never tried before are not in it.
        usage = self._usage["eval"]
        if not usage.priced_calls or not self._examples:
            return 0
        return -(-usage.cost * usage.calls // (usage.priced_calls * self._examples))

    def _refuse_calls(self, role: Role, count: int, set_aside: int) -> int:
        """Refuse calls that do not fit; else give what each is expected to cost."""
        assert self._limit is not None
        each = self._expected_call(role)
        left = self._limit - self._spent() - self._calling - set_aside
        self._refuse_if(each, count, left, "llm_query" if role == "sub" else role)
        return each

    def _refuse_if(self, each: int, count: int, left: int, purpose: str) -> None:
        if left <= 0 or each * count > left:
            fits = max(left, 0) // each if each else None
            raise CostExceededError(dollars(each * count), dollars(left), purpose, fits=fits)

    def _finish(self, slot: CostSlot, count: int) -> None:
        with self._lock:
            slot.count -= count
            self._examples += count
