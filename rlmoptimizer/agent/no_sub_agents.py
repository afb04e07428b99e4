"""What an agent without sub-agents finds when it imports dspy."""

from __future__ import annotations

from typing import Any

from dspy.primitives.facade import HOST_TOKEN_VAR

from kernel_bridge import KernelInterpreter

__all__ = ["refuse_sub_agents"]

_NO_SUB_AGENTS = """
def _no_dspy():
    import sys, types
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.partition(".")[0] == "dspy":
                raise ModuleNotFoundError(
                    "there is no dspy here: sub-agents are off in this optimization. Ask the sub-LM with "
                    "llm_query(prompt) or llm_query_batched(prompts)", name=name
                )
    sys.modules.pop("dspy", None)
    sys.meta_path.insert(0, Finder)
    if isinstance(globals().get("dspy"), types.ModuleType):  # of a process in which they were on
        del globals()["dspy"]
_no_dspy()
del _no_dspy, {variable}
"""


def refuse_sub_agents(repl: Any) -> None:
    """Let `import dspy` explain itself in a kernel, where it would find the library, which has no LM there.

    Another interpreter's modules may be the host's own; it only runs a `pass`, so that one that does not work ends the
    compile before the first turn.
    """
    if isinstance(repl, KernelInterpreter):
        code = _NO_SUB_AGENTS.replace("{variable}", HOST_TOKEN_VAR)
        repl.execute(code, {HOST_TOKEN_VAR: ""})  # with this variable it is run again in a successor
    else:
        repl.execute("pass")
