"""What no checkpoint has is told while it can still be helped, once for each cause; what was lost, after a death."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dspy.primitives.code_interpreter import CodeExecutionError

from kernel_bridge import KernelInterpreter, KernelSession, Limits

NOTE = "[Should the kernel die, this would be lost, because no checkpoint has it: "


@pytest.fixture(scope="module")
def unkept() -> Iterator[KernelInterpreter]:
    with KernelInterpreter(confinement="off", limits=Limits(checkpoint_bytes=100_000)) as interpreter:
        yield interpreter


@pytest.fixture
def kernel(unkept: KernelInterpreter) -> KernelInterpreter:
    unkept.execute("%reset -f")
    unkept.execute("pass")
    return unkept


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("g = (i for i in 'a'); h = (i for i in 'b')", "g, h (TypeError: cannot pickle 'generator' object)"),
        ("big = 'x' * 200_000", "big (larger than the checkpoint's 100000 bytes)"),
        ("class Own:\n    def __reduce__(self): raise LookupError(self)\nown = Own()", "LookupError: <"),
    ],
)
def test_a_name_that_cannot_be_kept_is_told_once_with_the_next_reply(
    kernel: KernelInterpreter, code: str, told: str
) -> None:
    assert kernel.execute(code) is None
    answer = kernel.execute("print('next')")
    assert answer.startswith(f"next\n{NOTE}")
    assert told in answer
    again = code if "own" not in code else "own = Own()"  # at another address
    assert kernel.execute(again) is None
    assert kernel.execute("'and on'") == "and on"


def test_it_is_told_with_an_error_as_well_and_again_when_it_comes_again(kernel: KernelInterpreter) -> None:
    kernel.execute("g = (i for i in 'a')")
    with pytest.raises(CodeExecutionError, match=r"(?s)ZeroDivisionError: .*\n\[Should the kernel die.*: g \("):
        kernel.execute("1 / 0")
    assert kernel.execute("del g") is None
    assert kernel.execute("g = (i for i in 'a')") is None
    assert kernel.execute("'x'").startswith(f"x\n{NOTE}g (")


def test_a_checkpoint_that_cannot_be_written_at_all_is_told() -> None:
    with KernelSession(confinement="off") as session:
        session.run("from kernel_bridge.inside.checkpoint_slots import SlotWriter\nreal = SlotWriter.finish\n"
                    "def full(*_, **__): raise OSError(28, 'no room')\nSlotWriter.finish = full")  # fmt: skip
        unkept = session.run("x = 1").unkept
        assert list(unkept) == ["all names"]
        assert "no room" in unkept["all names"]
        assert session.run("y = 1").unkept == {}
        assert session.run("SlotWriter.finish = real").unkept == {}
        assert session.run("pass").unkept == {}
        death = session.run("import os; os._exit(1)").death
        assert death is not None
        assert {"x", "y"} <= set(death.restored)


def test_many_names_are_told_in_bounds() -> None:
    with KernelInterpreter(confinement="off") as kernel:
        kernel.execute("for n in range(3_000): globals()[f'g{n:04}'] = (i for i in 'a')")
        told = kernel.execute("pass")
        assert "g0000, g0001" in told
        assert "2,900 more" in told
        with pytest.raises(CodeExecutionError) as death:
            kernel.execute("import os; os._exit(1)")
        text = str(death.value)
        assert all(f"g{n:04}" in text for n in range(1_000))
        assert "too many to" in text
        assert len(text) < 25_000
        assert text.count("cannot pickle") == 1
