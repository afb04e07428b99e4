"""The signature of a function, read alike on every Python, and the binding of calls to it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["ArgumentBinder", "Arguments", "call_signature"]

Arguments = tuple[list[Any], dict[str, Any]]  # by position, by keyword


def call_signature(function: Callable[..., Any]) -> inspect.Signature:
    """`inspect.signature`, also of a function whose annotations cannot be evaluated: they stay text then.

    From Python 3.14 on, annotations are evaluated when they are first read, and those that name what is imported for
    type checkers only raise NameError. Raises: TypeError, ValueError: it has no signature.
    """
    try:
        return inspect.signature(function)
    except NameError:
        if sys.version_info < (3, 14):
            raise
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.STRING)


class ArgumentBinder:
    """Binds the arguments of calls to a tool's signature, which is read once.

    They are passed by keyword wherever they can be, because some tools (DSPy's wrappers) show a signature but take
    keywords only. A tool without a signature gets them as they come.
    """

    def __init__(self, name: str, tool: Callable[..., Any]) -> None:
        self._name = name
        self._signature: inspect.Signature | None = None
        self._names: tuple[str, ...] | None = None  # in their order; None: not every one can be passed by name
        self._accepted: frozenset[str] = frozenset()  # the same
        self._positions = 0  # of these, that can be passed by position
        self._required: frozenset[str] = frozenset()
        try:
            self._signature = signature = call_signature(tool)
        except (ValueError, TypeError):
            return
        parameters = signature.parameters.values()
        plain = type(signature) is inspect.Signature  # another may bind in a way of its own
        if plain and all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
            self._names = tuple(signature.parameters)
            self._accepted = frozenset(self._names)
            self._positions = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
            self._required = frozenset(p.name for p in parameters if p.default is p.empty)

    def __call__(self, args: list[Any], kwargs: dict[str, Any]) -> Arguments:
        """The arguments as the tool gets them. Raises: TypeError, which tells how it is called."""
        signature = self._signature
        if signature is None:
            return args, kwargs
        if (names := self._names) is not None and len(args) <= self._positions:
            given = {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs
            once = len(given) == len(args) + len(kwargs)
            if once and self._required.issubset(given) and self._accepted.issuperset(kwargs):
                return [], given
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}(): {error}; it is called as {self._name}{signature}") from None
        return _by_keyword(signature, bound.arguments) if args else (args, kwargs)


def _by_keyword(signature: inspect.Signature, bound: dict[str, Any]) -> Arguments:
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    star = any(p.kind is p.VAR_POSITIONAL and bound.get(p.name) for p in signature.parameters.values())
    for parameter in signature.parameters.values():
        if parameter.name not in bound:
            continue
        value = bound[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional.extend(value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            keywords.update(value)
        elif parameter.kind is parameter.POSITIONAL_ONLY or (star and parameter.kind is not parameter.KEYWORD_ONLY):
            positional.append(value)
        else:
            keywords[parameter.name] = value
    return positional, keywords
