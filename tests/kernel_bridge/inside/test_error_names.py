"""The exceptions of host tools, caught in a cell by the name that a traceback shows."""

from __future__ import annotations

import pytest
from dspy.primitives.code_interpreter import CodeExecutionError

from kernel_bridge import KernelInterpreter


class OutOfFunds(Exception):
    """No builtin has this name."""


def spend() -> None:
    raise OutOfFunds("asked for 3, 1 left")


CATCH = "try:\n    spend()\nexcept OutOfFunds as error:\n    print('caught', error)"


@pytest.mark.smoke
def test_a_tools_own_exception_is_caught_by_its_name(kernel: KernelInterpreter) -> None:
    kernel.bind(tools={"spend": spend})
    assert kernel.execute(CATCH) == "caught asked for 3, 1 left"


def test_so_it_is_in_functions_and_after_a_death() -> None:
    with KernelInterpreter(tools={"spend": spend}, confinement="off") as kernel:
        cell = "def careful():\n" + "".join(f"    {line}\n" for line in CATCH.splitlines())
        assert kernel.execute(cell + "careful()") == "caught asked for 3, 1 left"
        kernel.execute("try:\n    spend()\nexcept Exception as error:\n    kept = error")
        with pytest.raises(CodeExecutionError):
            kernel.execute("import os; os._exit(1)")
        assert kernel.execute("careful()\nprint(type(kept).__name__, kept)") == (
            "caught asked for 3, 1 left\nOutOfFunds asked for 3, 1 left"
        )
