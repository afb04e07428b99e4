"""`try_program`: the program run on inputs of the agent's own, without a metric.

What it costs and what came of it are durable together before the agent sees them. A trial whose answer nobody got,
because the process or the kernel that asked was gone, answers the same call once more, for nothing.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import dspy

from rlmoptimizer.agent.call_gate import CallGate, OptimizationStopped
from rlmoptimizer.agent.current_prompts import CurrentPrompts
from rlmoptimizer.agent.trial_inputs import TrialInputs
from rlmoptimizer.agent.turns import Turns
from rlmoptimizer.errors import InputsError
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.run_execution import SPACES
from rlmoptimizer.evaluation.run_under_way import Caller
from rlmoptimizer.events import BudgetCharged
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.store.json_text import encode
from rlmoptimizer.task.dataset import Dataset, Row

__all__ = ["PURPOSE", "ProgramTrials"]

PURPOSE: Final = "try"  # of the charges
_KIND: Final = "ProgramTried"  # of the events
# The inputs of all trials together. A store holds them several times, as they are and as inputs of steps, and they must
# not fill the disk.
_MOST_BYTES: Final = 32_000_000


@dataclass(frozen=True, slots=True)
class _Given:
    """An answer, and who asked for it."""

    answer: Mapping[str, Any]
    caller: Caller | None  # None: an earlier process's agent

    @property
    def may_be_lost(self) -> bool:
        """The turn that asked has not ended."""
        return self.caller is None or self.caller.turn == self.caller.kernel.turns

    @property
    def is_lost(self) -> bool:
        """Nobody got it: the kernel ended before the turn that asked."""
        return self.caller is None or (self.caller.is_gone and self.may_be_lost)


class ProgramTrials:
    """The trials of one compile. Thread-safe.

    Args:
        program: a clone, which is never changed.
    """

    def __init__(
        self,
        program: dspy.Module,
        evaluator: Evaluator,
        accounts: Accounts,
        data: Dataset,
        prompts: CurrentPrompts,
        turns: Turns,
        gate: CallGate,
    ) -> None:
        self._program = program
        self._evaluator = evaluator
        self._accounts = accounts
        self._inputs = TrialInputs(data.train)
        self._prompts = prompts
        self._turns = turns
        self._gate = gate
        self._lock = threading.Lock()  # of the next two
        self._given: dict[str, _Given] = {}
        self._bytes = 0  # of the inputs of all trials
        # A turn whose process died is recorded without its seconds; nobody got what it asked for.
        ended = max((turn.number for turn in accounts.store.iterations() if turn.seconds is not None), default=0)
        for event in accounts.store.events(_KIND):
            self._bytes += len(_bytes(event.data["inputs"]))
            if event.data["turn"] > ended:
                self._given[event.data["key"]] = _Given(event.data["answer"], None)

    def answer(self, inputs: Any, prompts: Any, caller: Caller) -> dict[str, Any]:
        """What `try_program` returns. Costs one unit, or nothing where an LM failed before anything was answered.

        Raises `InputsError`, `PromptUpdateError`, `BudgetExceededError` and `CostExceededError`; nothing is spent then.
        """
        given = self._inputs.checked(inputs)
        tried = self._prompts.current if prompts is None else self._prompts.with_changes(prompts)
        content = _bytes(given)
        key = hashlib.sha256(content + tried.digest.encode()).hexdigest()
        with self._lock:
            earlier = self._given.get(key)
            if earlier is not None and earlier.is_lost:
                self._given[key] = _Given(earlier.answer, caller)
                return self._with_budget(earlier.answer)
            if self._bytes + len(content) > _MOST_BYTES:
                raise InputsError(
                    f"the inputs of all trials may have {_MOST_BYTES:,} bytes together; {self._bytes:,} are used, and "
                    f"these have {len(content):,}"
                )
            self._bytes += len(content)
            self._given = {asked: one for asked, one in self._given.items() if one.may_be_lost}
        return self._with_budget(self._paid(given, tried, key, caller))

    def _paid(self, inputs: dict[str, Any], prompts: Prompts, key: str, caller: Caller) -> dict[str, Any]:
        accounts, turn = self._accounts, self._turns.count
        with accounts.ledger.reserve(1, PURPOSE) as units, accounts.costs.reserve(1, PURPOSE) as dollars:
            result = self._run(inputs, prompts)
            answer = _answer(result)
            accounts.costs.flush()  # the dollars first, as for an example
            if result.has_verdict or result.shows_answers:
                event = {"key": key, "turn": turn, "inputs": inputs, "prompts": dict(prompts), "answer": answer}
                units.settle(1, lambda charge: accounts.store.record_event(_KIND, event, charge=charge))
                with self._lock:
                    self._given[key] = _Given(answer, caller)
            dollars.settle(1)
            if not units.open:
                accounts.emitter.emit(BudgetCharged(units=1, left=accounts.ledger.left))
        return answer

    def _run(self, inputs: dict[str, Any], prompts: Prompts) -> ExampleResult:
        example: Any = cast("Any", dspy.Example(inputs)).with_inputs(*inputs)
        result = self._evaluator.run_unscored(
            self._program,
            Row("0", None, example, "the inputs of try_program"),
            prompts=prompts,
            cancelled=self._gate.closed,
            space=SPACES["train"],
        )
        if result is None:
            raise OptimizationStopped
        return result

    def _with_budget(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        return {**answer, "remaining_budget": self._accounts.ledger.left}


def _bytes(inputs: Mapping[str, Any]) -> bytes:
    return encode(dict(inputs)).encode("utf-8", "surrogatepass")


def _answer(result: ExampleResult) -> dict[str, Any]:
    failure = {} if result.has_verdict else {"error_kind": result.error_kind}
    steps = [step.as_row() for step in result.steps]
    return {"outputs": result.predicted, "steps": steps, "error": result.error, **failure}
