"""The namespace across the death of a kernel: what is kept, what is not and why, within its bounds."""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from annotations import needs_late_annotations
from dspy.primitives.code_interpreter import CodeExecutionError
from living import add, assert_it_works

from kernel_bridge import (
    KernelInterpreter,
    KernelSession,
    Limits,
)
from kernel_bridge.inside.checkpoint import Checkpoint
from kernel_bridge.inside.checkpoint_slots import slot_paths
from kernel_bridge.inside.launch_config import CheckpointConfig
from kernel_bridge.inside.pickling import Pickling

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

MADE = '''
import collections, dataclasses, enum, functools, json as j, math, os.path as op, re, threading, typing
import numpy as np

def factorial(n): return 1 if n < 2 else n * factorial(n - 1)
def counter(n):
    def up():
        nonlocal n
        n += 1
        return n
    def look(): return n
    return up, look
up, look = counter(3)
square = lambda x: x * scale
scale = 10

class Base:
    registry = {}
    def who(self): return f"{type(self).__name__} of scale {scale}"
class Child(Base):
    def __init__(self): super().__init__(); self.value = 1
    def who(self): return super().who() + "!"
    @property
    def double(self): return self.value * 2
    @classmethod
    def make(cls): return cls()
    @staticmethod
    def still(): return scale
child = Child()
child.value = 21
@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int = 2
point = Point(1)
class Colour(enum.Enum):
    RED = 1
red = Colour.RED
Pair = collections.namedtuple("Pair", "a b")
pair = Pair(1, 2)
class Typed(typing.NamedTuple):
    n: int
typed = Typed(3)
@functools.lru_cache
def cached(x): return x * scale
part = functools.partial(square, 5)
bound = child.who
array = np.arange(6).reshape(2, 3)
inner = [1]
left, right = {"inner": inner}, (inner, inner)
loop = []; loop.append(loop)
child.me = child
pattern = re.compile("a+")
iterator = iter([1, 2, 3]); next(iterator)
big = 2 ** 200
held = {"tool": add, "submit": SUBMIT}
error = ValueError("kept too")
default = collections.defaultdict(list, a=[1])

generator = (i for i in [1])
lock = threading.Lock()
handle = open("file", "w")
async def routine(): return 1
coroutine = routine()
'''

CHECKED = '''
assert factorial(5) == 120 and (up(), look(), up()) == (4, 4, 5)
assert (square(2), part(), cached(4)) == (20, 50, 40)
assert child.who() == bound() == "Child of scale 10!"
assert (child.double, Child.still(), type(Child.make())) == (42, 10, Child)
scale = 3  # functions see the namespace that there is now
assert (square(2), child.who(), Child.still()) == (6, "Child of scale 3!", 3)
assert isinstance(child, Base) and child.me is child and bound.__self__ is child
assert point == Point(1) and red is Colour.RED and type(pair) is Pair and typed == Typed(3)
assert array.sum() == 15 and array.shape == (2, 3)
inner.append(2)
assert left["inner"] is inner and right[0] is right[1] is inner and loop[0] is loop
assert pattern.match("aa") and next(iterator) == 2 and big == 2 ** 200 and error.args == ("kept too",)
assert default["new"] == [] and j.dumps(1) == "1" and op.join("a", "b") == "a/b" and math.floor(1.5) == 1
assert held["tool"](40, 2) == 42
'''  # fmt: skip


def test_a_namespace_is_restored_faithfully_and_each_loss_is_named(fresh: KernelSession) -> None:
    pytest.importorskip("numpy")
    assert fresh.run(MADE).failure is None
    for _ in range(2):  # what was restored is kept again
        died = fresh.run("import os; os._exit(1)").death
        assert died is not None
        assert {"generator", "lock", "handle", "coroutine"} <= set(died.lost) | set(MADE_ONCE)
        assert all(died.lost.values())
        assert not set(died.lost) & set(died.restored)
        assert fresh.run(CHECKED).failure is None
        fresh.run("scale = 10; inner.pop(); iterator = iter([2]); up, look = counter(3)")
        MADE_ONCE.extend(("generator", "lock", "handle", "coroutine"))
    MADE_ONCE.clear()
    traced = fresh.run("def check_scale(): return scale / 0").failure
    assert traced is None
    fresh.run("import os; os._exit(1)")
    failure = fresh.run("check_scale()").failure
    assert failure is not None
    assert "return scale / 0" in failure.traceback  # the source is known to the successor
    assert held_submits(fresh)
    assert_it_works(fresh)


KINDS = """
import contextlib, dataclasses, enum, functools
def plain(): return 1 / 0  # plain
def outer():
    def inner(): return 1 / 0  # nested
    return inner
def closing(zero):
    return lambda: 1 / zero  # closure
def generating(): yield 1 / 0  # generator
async def awaiting(): return 1 / 0  # coroutine
def decorate(function):
    @functools.wraps(function)
    def wrapper(*args): return function(*args)  # wrapper
    return wrapper
@decorate
def decorated(): return 1 / 0  # decorated
@functools.lru_cache
def cached(): return 1 / 0  # cached
@contextlib.contextmanager
def managing(): yield 1 / 0  # manager
class Base:
    def method(self): return 1 / 0  # method
class Child(Base):
    def method(self): return super().method()  # overriding
    @property
    def prop(self): return 1 / 0  # property
    @classmethod
    def build(cls): return 1 / 0  # classmethod
    @staticmethod
    def still(): return 1 / 0  # staticmethod
@dataclasses.dataclass
class Data:
    zero: int = 0
    def __post_init__(self): 1 / self.zero  # dataclass
class Meta(type):
    def __call__(cls): return 1 / 0  # metaclass
class Made(metaclass=Meta): pass
class Colour(enum.Enum):
    RED = 1
    def mix(self): return 1 / 0  # enum
def in_a_list(): return [[1 / 0 for _ in "1"] for _ in "1"]  # comprehension
def by_default(call=lambda: 1 / 0): return call()  # default
kinds = {
    "plain": plain, "nested": outer(), "closure": closing(0), "generator": lambda: next(generating()),
    "coroutine": lambda: awaiting().send(None), "wrapper": decorated,
    "decorated": decorated, "cached": cached, "manager": lambda: managing().__enter__(), "method": Base().method,
    "overriding": Child().method, "property": lambda: Child().prop, "classmethod": Child.build,
    "staticmethod": Child.still, "dataclass": Data, "metaclass": Made, "enum": Colour.RED.mix,
    "comprehension": in_a_list, "default": by_default, "partial": functools.partial(plain),
}
own_globals = {}
exec(compile("def elsewhere(): return 1 / 0", plain.__code__.co_filename, "exec"), own_globals)
kinds["own globals"] = own_globals.pop("elsewhere")
"""


def test_restored_functions_of_every_kind_have_their_lines_in_tracebacks() -> None:
    with KernelSession({"add": add}, confinement="off") as session:
        assert session.run(KINDS).failure is None
        kinds = session.run("print(*kinds, sep=',')").text.strip().split(",")
        for _ in range(2):  # what was restored is kept again
            died = session.run("import os; os._exit(1)").death
            assert died is not None
            assert "kinds" in died.restored
            for kind in kinds:
                failure = session.run(f"kinds[{kind!r}]()").failure
                assert failure is not None
                assert failure.name == "ZeroDivisionError"
                line = {"partial": "# plain", "own globals": "# plain"}.get(kind, f"# {kind}")
                assert ("in elsewhere" if kind == "own globals" else line) in failure.traceback


MADE_ONCE: list[str] = []


def held_submits(session: KernelSession) -> bool:
    return session.run("held['submit']('restored')").submitted == {"output": "restored"}


@needs_late_annotations
@pytest.mark.smoke
def test_functions_and_classes_with_annotations_that_name_nothing_are_kept(fresh: KernelSession) -> None:
    made = "def f(x: List[Row]) -> Row: return x\nclass C:\n    a: Row\n    def m(self, x: Row): return x\nc = C()"
    assert fresh.run(made).text == ""
    assert fresh.run("import os; os._exit(1)").death is not None
    assert fresh.run("f(1), C().m(2), c.m(3)").text == "(1, 2, 3)\n"
    assert fresh.run("f.__annotations__").text == "{'x': 'List[Row]', 'return': 'Row'}\n"


# What a class has, whether its object is restored, and why not.
UNWILLING = [
    ("def __reduce__(self): raise ValueError('no')", False, "ValueError: no"),
    ("def __reduce__(self): return (eval, ('1/0',))", False, "ZeroDivisionError"),
    ("def __reduce__(self): return (exec, ('raise SystemExit',))", False, "SystemExit"),
    ("def __reduce__(self): return 'no_such_name'", False, "no_such_name"),
    ("def __setstate__(self, state): raise KeyError('set')", False, "KeyError"),
    ("def __getattribute__(self, name): raise AttributeError(name)", False, ""),
    ("def __sizeof__(self): import os; os._exit(3)", True, ""),
    ("def __hash__(self): raise TypeError", True, ""),
    ("def __eq__(self, other): import os; os._exit(3)", True, ""),
    ("def __reduce__(self): global grown; grown = 1; return (int, ())", True, ""),
]


def test_objects_that_cannot_be_kept_cost_only_themselves() -> None:
    check_what_is_kept(UNWILLING, Limits())


@pytest.mark.parametrize(
    "code",
    [
        "def __reduce__(self):\n        while True: pass",
        "def __reduce__(self): import re; re.match('(a+)+$', 'a' * 40 + 'b')",
        "def __setstate__(self, state):\n        while True: pass",
    ],
)
def test_an_object_that_takes_all_the_time_there_is_costs_only_itself(code: str) -> None:
    # It uses the time up; what ends is not to be cut, however slow the machine.
    check_what_is_kept([(code, False, "longer than")], Limits(checkpoint_seconds=2.5))


def check_what_is_kept(objects: list[tuple[str, bool, str]], limits: Limits) -> None:
    with KernelSession({"add": add}, confinement="off", limits=limits) as session:
        session.run("kept = 41")
        made = [
            f"class C{number}:\n    def __init__(self): self.a = 1\n    {code}\nbad{number} = C{number}(); "
            f"fine{number} = [1]"
            for number, (code, _, _) in enumerate(objects)
        ]
        assert session.run("\n".join([*made, "g = (i for i in [1])"])).failure is None
        death = session.run("import os; os._exit(9)").death
        assert death is not None
        assert death.reason == "it exited with status 9"
        assert {"kept"} <= set(death.restored)
        for number, (_, is_restored, reason) in enumerate(objects):
            assert {f"C{number}", f"fine{number}"} <= set(death.restored)
            assert (f"bad{number}" in death.restored) == is_restored
            if not is_restored:
                assert reason in death.lost[f"bad{number}"]
        assert "cannot pickle" in death.lost["g"]
        assert not set(death.lost) & set(death.restored)
        assert_it_works(session)


ENDLESS = """
import cloudpickle, time
class Plain:
    def __init__(self): self.a = 1
class InACell(Plain):
    def __setstate__(self, state):
        while True: pass
exec("class InNoCell(Plain):\\n    def __setstate__(self, state):\\n        while True: pass")
class Swallowing(Plain):
    def __setstate__(self, state):
        for _ in range(3):
            try:
                while True: pass
            except BaseException: pass
        while True: pass
class WithoutCode:
    def __reduce__(self): return time.sleep, (1e6,)
class Key(Plain):
    def __hash__(self):
        while not hasattr(self, "a"): pass
        return 1
class Endless(Exception):
    def __str__(self):
        while True: pass
def fail(): raise Endless
class Failing:
    def __reduce__(self): return fail, ()
class Setter(Plain):
    def __reduce__(self): return Plain, (), 1, None, None, lambda made, state: time.sleep(1e6)
key = Key()
key.a = {key: 1}
bad = [InACell(), InNoCell(), Swallowing(), WithoutCode(), Failing(), Setter()]
bad0, bad1, bad2, bad3, bad4, bad5 = bad
bad6 = key.a
shared, kept = [1], 41
same = [shared]
"""


def test_objects_that_never_end_while_they_are_restored_cost_only_themselves() -> None:
    with KernelSession({"add": add}, confinement="off", limits=Limits(checkpoint_seconds=2)) as session:
        assert session.run(ENDLESS).failure is None
        death = session.run("import os; os._exit(9)").death
        assert death is not None
        assert death.reason == "it exited with status 9"
        assert set(death.lost) == {"key", "bad", *(f"bad{number}" for number in range(7))}
        assert all(reason.startswith("restoring it raised ") for reason in death.lost.values())
        assert session.run("same[0] is shared").text == "True\n"
        assert_it_works(session)


@pytest.mark.parametrize(
    "code",
    [
        "def __reduce__(self): import os; os._exit(5)",
        "def __reduce__(self):\n        import time\n        while True:\n"
        "            try: time.sleep(0.01)\n            except BaseException: pass",
    ],
)  # fmt: skip
def test_a_kernel_that_dies_while_it_keeps_its_variables_says_so(code: str) -> None:
    limits = Limits(checkpoint_seconds=0.5) if "while" in code else Limits()
    with KernelSession({"add": add}, confinement="off", limits=limits) as session:
        session.run("import cloudpickle; kept = 41")  # a slow machine could not import it in the checkpoint's time
        made = session.run(f"class C:\n    {code}\nbad = C(); newer = 1")
        # Under load the kernel may be gone before its answer has left it, or the time may be over before the pickling
        # has come to the object: then the next checkpoint tries it again.
        deaths = (session.run("print('perhaps')").death for _ in range(20))
        death = made.death or next(death for death in deaths if death is not None)
        which = "this cell, which had come to its end" if made.death else "an earlier cell; this cell had not begun"
        assert f"while it kept the variables after {which}" in death.reason
        assert "kept" in death.restored
        assert "newer" not in death.restored
        assert any("never finished" in reason for reason in death.lost.values())
        assert_it_works(session)


def test_a_kernel_that_dies_before_the_answer_of_a_cell_has_left_it_says_that_the_cell_had_ended() -> None:
    unsent = "get_ipython().kernel.replies.send = lambda *parts: None\n"  # as when its sending thread is not let run
    with KernelSession({"add": add}, confinement="off") as session:
        session.run("kept = 41")
        death = session.run(f"{unsent}class C:\n    def __reduce__(self): import os; os._exit(5)\nbad = C()").death
        assert death is not None
        assert death.reason == (
            "it exited with status 5, while it kept the variables after this cell, which had come to its end"
        )
        assert_it_works(session)


def test_a_checkpoint_that_kills_whoever_restores_it_is_left_behind() -> None:
    with KernelSession({"add": add}, confinement="off") as session:
        session.run("class C:\n    def __init__(self): self.a = 1\n    def __setstate__(self, state):\n"
                    "        import os; os._exit(3)\nbad = C(); kept = 1")  # fmt: skip
        death = session.run("import os; os._exit(9)").death
        assert death is not None
        assert death.restored == ()
        assert "status 3" in death.lost["all names"]
        session.run("kept = 41")
        death = session.run("import os; os._exit(9)").death
        assert death is not None
        assert death.restored == ("kept",)
        assert_it_works(session)


def test_a_checkpoint_is_bounded_and_small_names_survive_large_ones() -> None:
    with KernelSession({"add": add}, confinement="off", limits=Limits(checkpoint_bytes=100_000)) as session:
        session.run("kept = 41; huge = b'x' * 10_000_000; many = list(range(10)); deep = []\n"
                    "for _ in range(50_000): deep = [deep]")  # fmt: skip
        death = session.run("import os; os._exit(9)").death
        assert death is not None
        assert {"kept", "many"} <= set(death.restored)
        assert "100000 bytes" in death.lost["huge"]
        assert "recursion" in death.lost["deep"]
        assert_it_works(session)


def test_the_agents_own_timer_goes_on_beside_the_checkpoints(session: KernelSession) -> None:
    session.run("import signal\nrang = []\nsignal.signal(signal.SIGALRM, lambda *a: rang.append(1))\n"
                "signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)")  # fmt: skip
    for _ in range(3):
        assert session.run("1").text == "1\n"  # each followed by a checkpoint
    assert session.run("import time\nwhile len(rang) < 2: time.sleep(0.01)").failure is None
    session.run("signal.setitimer(signal.ITIMER_REAL, 0)")
    assert_it_works(session)


def test_names_beyond_number_are_kept_and_told_in_bounds() -> None:
    with KernelInterpreter({"add": add}, confinement="off") as interpreter:
        interpreter.execute("kept = 41\nfor i in range(20_000): globals()[f'v{i}'] = [i]")
        with pytest.raises(CodeExecutionError) as told:
            interpreter.execute("import os; os._exit(1)")
        assert len(str(told.value)) < 20_000
        assert interpreter.execute("print(v19999, add(kept, 1))") == "[19999] 42"


def test_what_a_thread_changes_while_a_checkpoint_is_made_is_in_the_next_one(tmp_path: Path) -> None:
    seen: list[int] = [1]

    class Meanwhile(Pickling):
        def dump(self, *args: Any, **options: Any) -> Any:
            try:
                return super().dump(*args, **options)
            finally:
                seen.append(2)

    names: dict[str, Any] = {"seen": seen}
    checkpoint = checkpoint_in(tmp_path, Meanwhile)
    assert checkpoint.write(names) == {}
    assert not checkpoint.is_of(names)
    checkpoint = checkpoint_in(tmp_path)
    assert checkpoint.write(names) == {}
    assert checkpoint.is_of(names)


def checkpoint_in(folder: Path, pickling: type[Pickling] = Pickling, seconds: float = 60.0) -> Checkpoint:
    path = str(folder / "checkpoint")
    for slot in slot_paths(path):
        Path(slot).touch()
    config = CheckpointConfig(path, 10**6, seconds, str(folder / "progress"))
    own = pickling({}, {"add": add}.__getitem__)
    return Checkpoint(config, {}, own, last_words=2, end_if_forked=lambda: None)


class Counted:
    """Counts how often it is pickled."""

    def __init__(self) -> None:
        self.times = 0

    def __reduce__(self) -> Any:
        self.times += 1
        return int, ()


def test_beside_a_name_that_cannot_be_kept_the_others_are_pickled_once_from_then_on(tmp_path: Path) -> None:
    large = Counted()
    names: dict[str, Any] = {"large": large, "failing": (i for i in "a"), "small": [1]}
    checkpoint = checkpoint_in(tmp_path)
    assert set(checkpoint.write(names)) == {"failing"}
    first = large.times
    for times in (1, 2):
        assert set(checkpoint.write(names)) == {"failing"}
        assert large.times == first + times
    names["failing"] = "no more"
    assert checkpoint.write(names) == {}
    names["failing"] = (i for i in "a")
    assert set(checkpoint.write(names)) == {"failing"}
    restored, lost = checkpoint.restore()
    assert restored == ["large", "small"]
    assert set(lost) == {"failing"}


class Refusing(type):
    def __getattribute__(cls, name: str) -> Any:
        raise LookupError(name)


class Refused(metaclass=Refusing):
    pass


class NoText:
    def __str__(self) -> str:
        raise LookupError


def test_what_answers_no_question_costs_only_itself(tmp_path: Path) -> None:
    renamed = types.ModuleType("renamed")
    renamed.__name__ = NoText()  # type: ignore[assignment]
    names: dict[str, Any] = {"refused": Refused(), "renamed": renamed, "kept": [1]}
    checkpoint = checkpoint_in(tmp_path)
    assert set(checkpoint.write(names)) == {"refused", "renamed"}
    assert checkpoint.restore()[0] == ["kept"]


def test_modules_have_more_time_and_one_that_takes_all_leaves_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = {"slow_one": "import time; time.sleep(2.5)", "endless_one": "import time; time.sleep(600)", "quick_one": ""}
    for name, text in code.items():
        (tmp_path / f"{name}.py").write_text(text)
    checkpoint = checkpoint_in(tmp_path, seconds=2.0)
    try:
        assert checkpoint.write({name: types.ModuleType(name) for name in code}) == {}
        restored, lost = checkpoint.restore()
        assert restored == ["quick_one", "slow_one"]
        assert "importing endless_one raised OutOfTime" in lost["endless_one"]
    finally:
        for name in code:
            sys.modules.pop(name, None)


def test_a_name_that_took_too_long_once_is_tried_again_with_all_the_others(tmp_path: Path) -> None:
    class Slow:
        seconds = 60.0

        def __reduce__(self) -> Any:
            time.sleep(self.seconds)
            return int, ()

    checkpoint = checkpoint_in(tmp_path, seconds=2.4)
    names: dict[str, Any] = {"slow": Slow(), "failing": (i for i in "a"), "small": [1]}
    assert set(checkpoint.write(names)) == {"slow", "failing"}
    Slow.seconds = 0.4  # more than it would get alone
    assert set(checkpoint.write(names)) == {"failing"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "code",
    [
        "def __reduce__(self): os.fork(); return int, ()",
        "def __reduce__(self): os.fork(); raise LookupError",
        "def __reduce__(self): raise Forking\nclass Forking(Exception):\n    def __str__(self): os.fork(); return 'x'",
    ],
)
def test_a_process_that_is_forked_while_names_are_kept_is_no_second_kernel(
    code: str, wait_until: Callable[..., None]
) -> None:
    with KernelSession(confinement="off") as session:
        session.start()
        before = running()
        large = "x" * 300_000  # after the fork both processes have something to write
        session.run(f"import os\nclass C:\n    {code}\nc, kept = C(), {large!r}")
        session.run("newer = 1")
        wait_until(lambda: running() == before, "the end of the fork")
        death = session.run("import os; os._exit(9)").death
        assert death is not None
        assert {"kept", "newer"} <= set(death.restored)
        assert not any("never finished" in reason for reason in death.lost.values())
        assert session.run("(len(kept), newer)").text == "(300000, 1)\n"


def running() -> int:
    found = psutil.Process().children(recursive=True)
    return sum(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in found)
