"""A race: candidates on shared examples in growing rounds, of which those that are beaten leave early.

Each round of a candidate is a stored run, so a race that was cut goes on when the same call is made again: what is
finished is neither run nor paid a second time, and the rule, which depends on the scores alone, comes to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

from rlmoptimizer.agent.race_request import Candidate, RaceRequest
from rlmoptimizer.agent.race_rule import leavers, level, ranked
from rlmoptimizer.agent.run_comparison import comparison_text
from rlmoptimizer.comparison import compare
from rlmoptimizer.errors import BudgetExceededError, CostExceededError
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import LMsFailed
from rlmoptimizer.evaluation.run_price import Funds
from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.evaluation.run_under_way import Caller
from rlmoptimizer.evaluation.runs import Runs
from rlmoptimizer.outcome.run_totals import percent
from rlmoptimizer.records import mean
from rlmoptimizer.spending.ledger import Ledger, Slot

__all__ = ["Race"]


@dataclass(slots=True)
class _Runner:
    """What one candidate has done so far."""

    candidate: Candidate
    scores: dict[str, float] = field(default_factory=dict[str, float])  # example id -> 0..1
    run_ids: list[str] = field(default_factory=list[str])
    left_after: int | None = None  # the round after which it left, 1-based; None: it did not


class _Reserve:
    """What is set aside for a race in one ledger, of which its runs take their part."""

    def __init__(self, slot: Slot, ledger: Ledger) -> None:
        self._slot = slot
        self._ledger = ledger

    def reserve(self, pieces: int, purpose: str) -> AbstractContextManager[Slot]:
        # More is needed than was counted on when another call has meanwhile taken over results of a run that was cut.
        source = self._slot if pieces <= self._slot.open else self._ledger
        return source.reserve(pieces, purpose)

    def keep(self, pieces: int) -> None:
        """Give back what is more than `pieces`."""
        self._slot.release(max(self._slot.open - pieces, 0))


class Race:
    """One race, run once.

    Args:
        check: raises when the race must not go on; called after every round.
    """

    def __init__(
        self, request: RaceRequest, runs: Runs, accounts: Accounts, caller: Caller, check: Callable[[], None]
    ) -> None:
        self._request = request
        self._runs = runs
        self._accounts = accounts
        self._caller = caller
        self._check = check
        self._runners = {candidate.index: _Runner(candidate) for candidate in request.candidates}
        self._racing = list(self._runners)  # who has not left
        self._failed: tuple[Request, LMsFailed] | None = None  # the first run without any verdict
        self._is_cut = False  # by max_cost_usd

    def run(self) -> None:
        """Race to the end. Raises `BudgetExceededError` or `CostExceededError` before anything is spent."""
        needs = self._needs()
        last = len(self._request.rounds) - 1
        with ExitStack() as stack:
            units, dollars = self._reserved(needs, stack)
            for number in range(last + 1):
                self._run_round(number, Funds(units, dollars))
                if self._is_cut:
                    return
                if number < last:
                    self._let_go(number)
                if len(self._racing) <= self._request.keep:
                    return
                rest = [need for (one, at), need in needs.items() if one in self._racing and at > number]
                units.keep(sum(need[0] for need in rest))
                dollars.keep(sum(need[1] for need in rest))

    @property
    def failure(self) -> tuple[Request, LMsFailed] | None:
        """Why there is no score at all: the first run on which the LM failed; None: there are scores."""
        return None if any(runner.scores for runner in self._runners.values()) else self._failed

    def answer(self) -> dict[str, Any]:
        """What `race_prompts` returns."""
        order = self._order()
        left = self._accounts.ledger.left
        return {
            "ranking": [_entry(self._runners[one]) for one in order],
            "remaining_budget": left,
            "summary_line": f"{self._summary(order)}; {left} budget unit{'' if left == 1 else 's'} left",
        }

    # rounds

    def _needs(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Units and evaluations that each candidate needs at most in each round."""
        return {
            (candidate.index, number): self._runs.needs(self._request.request(candidate, number), self._caller)
            for candidate in self._request.candidates
            for number in range(len(self._request.rounds))
        }

    def _reserved(
        self, needs: Mapping[tuple[int, int], tuple[int, int]], stack: ExitStack
    ) -> tuple[_Reserve, _Reserve]:
        """The worst case, set aside until the end of `stack`."""
        ledger, costs = self._accounts.ledger, self._accounts.costs
        each = len(self._request.candidates)
        try:
            units = stack.enter_context(ledger.reserve(sum(need[0] for need in needs.values()), "evaluate"))
            dollars = stack.enter_context(costs.reserve(sum(need[1] for need in needs.values()), "evaluate"))
        except BudgetExceededError as refused:
            raise BudgetExceededError(refused.asked, refused.left, "race", repeats=each) from None
        except CostExceededError as refused:
            raise CostExceededError(
                refused.asked_usd, refused.left_usd, "race", fits=refused.fits, repeats=each
            ) from None
        return _Reserve(units, ledger), _Reserve(dollars, costs)

    def _run_round(self, number: int, funds: Funds) -> None:
        runners = [self._runners[one] for one in self._racing]
        requests = [self._request.request(runner.candidate, number) for runner in runners]
        outcomes = self._runs.paid_together(requests, self._caller, funds)
        self._check()
        for runner, request, outcome in zip(runners, requests, outcomes, strict=True):
            if isinstance(outcome, LMsFailed):
                self._failed = self._failed or (request, outcome)
                run_id = outcome.run_id
            else:
                run_id = outcome.run_id
                self._is_cut |= outcome.state == "cancelled"
            runner.run_ids.append(run_id)
            scores = self._accounts.store.scores(run_id)
            runner.scores.update((example_id, mean(own)) for example_id, own in scores.items())

    def _let_go(self, number: int) -> None:
        """Who is beaten leaves."""
        rest = sum(map(len, self._request.rounds[number + 1 :]))
        looks = len(self._request.rounds) - 1
        scores = {one: self._runners[one].scores for one in self._racing}
        at_level = level(looks, len(self._runners))
        for one in leavers(scores, self._request.keep, rest, at_level):
            self._runners[one].left_after = number + 1
            self._racing.remove(one)

    # the answer

    def _order(self) -> list[int]:
        """Best first: those that stayed by score, then those that left, the last one first."""
        by_score = ranked({one: runner.scores for one, runner in self._runners.items()})
        return sorted(by_score, key=lambda one: -(self._runners[one].left_after or len(self._request.rounds) + 1))

    def _summary(self, order: list[int]) -> str:
        first, second = (self._runners[one] for one in order[:2])
        text = f"race of {len(order)} candidates on {self._request.examples} train examples"
        if self._is_cut:
            text += ", cut by max_cost_usd"
        if not first.scores:
            return f"{text}: no verdict for the best"
        score = f"score {percent(mean(list(first.scores.values()))):.2f} on {len(first.scores)}"
        common = [one for one in first.scores if one in second.scores]
        against = compare([second.scores[one] for one in common], [first.scores[one] for one in common])
        said = comparison_text(against, judged=second.left_after is None)  # the race has judged who left, by its rule
        left = sum(runner.left_after is not None for runner in self._runners.values())
        return (
            f"{text}: candidates[{first.candidate.index}] is best with {score}; against candidates"
            f"[{second.candidate.index}] on {against.n}: {said}; {left} left early"
        )


def _entry(runner: _Runner) -> dict[str, Any]:
    scores = list(runner.scores.values())
    return {
        "index": runner.candidate.index,
        "prompts": dict(runner.candidate.prompts),
        "score": percent(mean(scores)) if scores else None,
        "evaluated_count": len(scores),
        "run_ids": list(runner.run_ids),
        "left_after": runner.left_after,
    }
