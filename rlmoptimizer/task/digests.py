"""Digests of modules and values that are equal in every process."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# DSPy's modules and signatures are untyped.

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import math
import pathlib
import re
import typing
import uuid
from collections.abc import Iterable, Mapping, Set
from typing import Any, Final

import dspy
from dspy.primitives.base_module import BaseModule
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["module_digests", "value_digest"]

# "max_tokens" is a setting; "api_token" is a secret. An LM's address is no part of the program either: a local server
# may have another port the next time.
_SECRET: Final = re.compile(r"(?i)(^|[_-])(api_?key|key|secret|password|token|auth(orization)?|credentials?|headers?)$")
_ACCESS: Final = frozenset({"api_base", "base_url", "model_list", "timeout"})
_DEEPEST: Final = 100  # levels of a value; what lies deeper counts by its class alone


def module_digests(modules: Iterable[tuple[str, BaseModule, bool]]) -> dict[str, str]:
    """Path to digest, of (path, module, whether its instructions are free to change)."""
    digests: dict[str, str] = {}
    for number, (path, module, free) in enumerate(modules):
        # A frozen sub-module hides its predictors; on the program itself the mark only says that it was optimized.
        frozen = number > 0 and bool(getattr(module, "_compiled", False))
        digests[path] = _digest(f"frozen={frozen}|{_Description().module(module, with_instructions=not free)}")
    return digests


def value_digest(value: Any) -> str:
    """A digest of a value. Objects of classes that are not known here count by their class alone."""
    return _digest(_Description().value(value))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


_SPELLED: Final = (  # classes whose values their texts tell apart
    complex,
    bytearray,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    fractions.Fraction,
    pathlib.PurePath,
    uuid.UUID,
)


class _Description:
    """A text that is equal for equal values in every process: no addresses, no order of sets."""

    def __init__(self, *, as_saved: bool = False) -> None:
        self._inside: set[int] = set()
        self._as_saved = as_saved  # values that DSPy's `save` writes alike are alike

    def module(self, module: BaseModule, *, with_instructions: bool) -> str:
        parts = [_name(type(module))]
        values = vars(module)
        for name, value in values.items():
            if isinstance(value, dspy.BaseLM):
                parts.append(f"{name}={self.lm(value)}")
            elif isinstance(value, type) and issubclass(value, dspy.Signature):
                parts.append(f"{name}={self.signature(value, with_instructions=with_instructions)}")
        if isinstance(module, dspy.Predict):
            saved = _Description(as_saved=True)
            parts.append(f"demos={saved.value(values.get('demos'))}")
            parts.append(f"config={self.value(values.get('config'))}")
            parts.append(f"fields={saved.value(values.get('fields'))}")
        return "|".join(parts)

    def signature(self, signature: Any, *, with_instructions: bool) -> str:
        # Not the class's name: DSPy drops it whenever it loads or rewrites a signature.
        fields = [f"{name}:{self.field(field)}" for name, field in signature.fields.items()]
        if with_instructions:
            fields.append(repr(signature.instructions))
        return f"({', '.join(fields)})"

    def field(self, field: FieldInfo) -> str:
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        return self.value(
            [
                field.annotation,
                list(field.metadata),
                _name(type(field.default)) if field.default is ... else field.default,
                field.default_factory,
                field.title,
                {key: extra[key] for key in sorted(extra)},
            ]
        )

    def lm(self, lm: dspy.BaseLM) -> str:
        settings = {"model": lm.model, "model_type": lm.model_type, **lm.kwargs}
        known = {key: settings[key] for key in sorted(settings) if key not in _ACCESS and not _SECRET.search(key)}
        return f"{_name(type(lm))}{_Description(as_saved=True).value(known)}"

    def value(self, value: Any) -> str:
        if self._as_saved:
            value = _saved(value)
        if value is None or isinstance(value, bool | float | str | bytes):
            return repr(value) if not isinstance(value, enum.Enum) else f"{_name(type(value))}.{value.name}"
        if isinstance(value, int):
            return hex(value)
        if id(value) in self._inside:
            return "<cycle>"
        if len(self._inside) >= _DEEPEST:
            return f"<deep {_name(type(value))}>"
        self._inside.add(id(value))
        try:
            return self._compound(value)
        finally:
            self._inside.discard(id(value))

    def _compound(self, value: Any) -> str:
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{self.value(key)}: {self.value(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}[{', '.join(map(self.value, value))}]"
        if isinstance(value, Set):
            return f"set[{', '.join(sorted(map(self.value, value)))}]"
        if isinstance(value, _SPELLED):
            return f"{_name(type(value))}({value!s})"
        if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            return f"{_name(type(value))}{self.value(value.tolist())}"
        if isinstance(value, dspy.Example):
            return f"{_name(type(value))}{self.value(dict(value.items(include_dspy=True)))}"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, dspy.BaseLM):
            return self.lm(value)
        if (origin := typing.get_origin(value)) is not None:
            return f"{self.value(origin)}[{', '.join(map(self.value, typing.get_args(value)))}]"
        if isinstance(value, BaseModel):
            return f"{_name(type(value))}{self.value(value.__dict__)}"
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
            return f"{_name(type(value))}{self.value(fields)}"
        return _name(value if callable(value) else type(value))

    def _class(self, cls: type) -> str:
        if issubclass(cls, enum.Enum):
            return f"{_name(cls)}{self.value({member.name: member.value for member in cls})}"
        if issubclass(cls, BaseModel) and not cls.__module__.startswith("dspy."):
            return f"{_name(cls)}{self.value({name: field.annotation for name, field in cls.model_fields.items()})}"
        return _name(cls)


def _saved(value: Any) -> Any:
    """What a value is after DSPy has saved it to JSON and loaded it; of a container, itself, but not what is in it."""
    if isinstance(value, dspy.Example):
        return dict(value.items(include_dspy=True))
    if isinstance(value, BaseModel):
        try:
            return value.model_dump(mode="json")
        except Exception:  # noqa: BLE001 - a foreign model's own serializers run here
            return value
    if isinstance(value, enum.Enum):
        return _saved(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if isinstance(value, datetime.date | datetime.time):  # a datetime too
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value


def _name(value: Any) -> str:
    """The name of a class or function; for other callables, of their class."""
    owner = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(owner, '__module__', '?')}.{owner.__qualname__}"
