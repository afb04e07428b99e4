"""How an optimization ended, as the run store keeps it: the agent's end, then the choice, then the rest. No DSPy.

Each is recorded as soon as it is known, so that a resume neither asks the agent again nor decides anew.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rlmoptimizer.prompts import Prompts
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["AgentOutcome", "Choice", "Outcome"]


@dataclass(frozen=True, slots=True)
class AgentOutcome:
    """What is left of an agent that has finished."""

    prompts: dict[str, str] | None  # the submission, checked; None: there is no valid one
    problem: str | None  # why there is none
    final_reasoning: str
    stop_reason: str  # why its work ended: "submitted", or one of `agent.stopping`

    @classmethod
    def of(cls, store: StoreReader) -> AgentOutcome | None:
        """The one that is recorded; None: the agent's work goes on."""
        recorded = store.agent_end()
        return None if recorded is None else cls(**recorded)

    def record(self, store: RunStore) -> None:
        store.record_agent_end(asdict(self))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which prompts are given back, and why."""

    prompts: dict[str, str]  # by step
    run_id: str | None  # the run that they are taken from; None: they are the agent's submission
    because: str

    @property
    def candidate(self) -> str:
        """The id of the prompts."""
        return Prompts.of(self.prompts).digest

    @classmethod
    def of(cls, store: StoreReader) -> Choice | None:
        """The one that is recorded; None: nothing is decided."""
        recorded = store.choice()
        return None if recorded is None else cls(**recorded)

    def record(self, store: RunStore) -> None:
        store.record_choice(asdict(self))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known at the very end."""

    test_problem: str | None  # why the test set was not measured; None: it was, or there is none
    usage: dict[str, Any]  # of all LM calls, by role, as in the result
    cost_usd: float | None  # None: a price is not known
    versions: dict[str, str]  # of what the last process ran on

    @classmethod
    def of(cls, store: StoreReader) -> Outcome | None:
        """The one that is recorded; None: the optimization has not ended."""
        recorded = store.outcome()
        return None if recorded is None else cls(**recorded)

    def record(self, store: RunStore) -> None:
        store.record_outcome(asdict(self))
