"""The source of the program and of the metric, as far as it is code of the user's own."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final

import dspy

from kernel_bridge.text import cut_middle
from rlmoptimizer.task.program import all_modules

__all__ = ["Source", "metric_source", "program_source"]

_SOURCE_CHARS: Final = 60_000  # of one source; a longer one loses its middle
_MOST_PARTS: Final = 60  # classes and functions


@dataclass(frozen=True, slots=True)
class Source:
    """The text of one of them."""

    text: str  # "": there is none
    problem: str | None  # why there is none; None: there is one


def program_source(program: dspy.Module) -> Source:
    """The classes of the program, of its modules and of their signatures, the functions of its tools, and what these
    use of their own modules."""
    modules = all_modules(program)
    signatures = [getattr(module, "signature", None) for module in modules]
    parts: list[Any] = [*map(type, modules), *(vars(kind).get("__rewords__", kind) for kind in signatures if kind)]
    parts.extend(function for module in modules for function in _tools_of(module))
    own = [part for part in parts if not _is_foreign(part)]
    return _source(own) if own else Source("", f"the program is DSPy's own {type(program).__name__}")


def _tools_of(module: Any) -> Iterator[Any]:
    """The functions of the tools that a module keeps, as `dspy.ReAct` does."""
    for kept in vars(module).values():
        values: Any = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, (list, tuple)) else [kept]
        for value in values:
            function = getattr(value.func, "__func__", value.func) if isinstance(value, dspy.Tool) else None
            if inspect.isfunction(function):
                yield function


def metric_source(metric: Callable[..., Any]) -> Source:
    """The metric's function or class, and what it uses of its own module."""
    described: Any = metric
    while isinstance(described, functools.partial):
        described = described.func
    described = inspect.unwrap(getattr(described, "__func__", described))
    return _source([described if inspect.isroutine(described) or inspect.isclass(described) else type(described)])


def _source(roots: Iterable[Any]) -> Source:
    """The sources of `roots` and of what they use, each module's in the order of its file. The first must have one."""
    roots = list(roots)
    texts: dict[tuple[str, int], str] = {}
    for number, part in enumerate(_used_by(roots)):
        try:
            lines, start = inspect.getsourcelines(part)
            where = str(inspect.getsourcefile(part))
        except (OSError, TypeError, SyntaxError) as error:
            if number == 0:
                why = "it is not written in Python" if isinstance(error, TypeError) else "it was not defined in a file"
                if isinstance(error, SyntaxError):
                    why = "its file is no valid Python any more"  # somebody is editing it
                name = getattr(part, "__name__", type(part).__name__)
                return Source("", f"the source of {name} cannot be read, because {why}")
            continue
        texts[where, start] = textwrap.dedent("".join(lines)).rstrip()
    return Source(cut_middle("\n\n\n".join(texts[place] for place in sorted(texts)), _SOURCE_CHARS), None)


def _used_by(roots: list[Any]) -> Iterator[Any]:
    """`roots` and, transitively, the functions and classes of the same modules that they name. Each once.

    A signature may be of another module: programs and signatures often have a file each, and `dspy.ChainOfThought`
    keeps only a copy without a source.
    """
    waiting, seen = list(roots), set[int]()
    while waiting and len(seen) < _MOST_PARTS:
        part = waiting.pop(0)
        if id(part) in seen or (_is_foreign(part) and part is not roots[0]):
            continue
        seen.add(id(part))
        yield part
        known: dict[str, Any] = getattr(sys.modules.get(part.__module__ or ""), "__dict__", {})
        for name in _names_in(part):
            used = known.get(name)
            if not inspect.isfunction(used) and not inspect.isclass(used):
                continue
            if used.__module__ == part.__module__ or (inspect.isclass(used) and issubclass(used, dspy.Signature)):
                waiting.append(used)
        if inspect.isclass(part):
            waiting.extend(base for base in part.__bases__ if base.__module__ == part.__module__)


def _names_in(part: Any) -> Iterator[str]:
    """The global names that the code of a function, or of a class's methods, reads."""
    members = vars(part).values() if inspect.isclass(part) else [part]
    codes = [code for member in members if (code := _code(member)) is not None]
    while codes:
        code = codes.pop(0)
        yield from code.co_names
        codes.extend(inner for inner in code.co_consts if isinstance(inner, CodeType))


def _code(member: Any) -> CodeType | None:
    """The code of a function or of a method of any kind; None: it is something else, which is not touched."""
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property):
        member = member.func
    code = getattr(inspect.unwrap(member), "__code__", None) if inspect.isfunction(member) else None
    return code if isinstance(code, CodeType) else None


def _is_foreign(part: Any) -> bool:
    """Whether it comes with Python or DSPy."""
    package = (getattr(part, "__module__", None) or "").partition(".")[0]
    return package == "dspy" or package in sys.stdlib_module_names - {"__main__"}
