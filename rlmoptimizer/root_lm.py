"""The root LM's turns: one chained conversation where the provider keeps state, plain calls where it does not. Knows
nothing of tools, budget or the program being optimized.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dspy

__all__ = ["RootSession", "root_session"]


class RootSession:
    """How one ``dspy.RLM`` run talks to its root LM. Made by `root_session`, never directly."""

    chained: bool  # whether turns are sent as a chain of stored responses (decided at the start, off if it fails)

    def attach(self, rlm: dspy.RLM) -> None:
        """Route `rlm`'s own turns (`generate_action` and `extract`) through this session, until it ends.

        Nothing else sees the session: `dspy.settings` is left as it is, so `llm_query`, nested `dspy.Predict` or
        `dspy.RLM` sub-agents, host tools and evaluation use the LM and adapter that they would have used without it.
        """
        raise NotImplementedError


@contextmanager
def root_session(
    root_lm: dspy.BaseLM,
    *,
    stateful: bool = True,
    multiturn_history: bool = False,
    max_output_chars: int | None = None,
) -> Iterator[RootSession]:
    """Open a session between one ``dspy.RLM`` run and its root LM.

        with root_session(root_lm, stateful=True, multiturn_history=False) as session:
            rlm = dspy.RLM(signature, max_output_chars=10_000, sub_lm=sub_lm or root_lm, ...)
            session.attach(rlm)
            result = rlm(**inputs)              # or: await rlm.acall(**inputs)

    Pass ``sub_lm`` to the RLM explicitly, as above: without it `llm_query` falls back to `dspy.settings.lm`, which the
    session does not set.
    """
    raise NotImplementedError
    yield
