"""The signature of a sub-agent, written as text: a closed grammar, and the closed list of types that it can name.

    fields "->" fields      fields: name[: type], ...
    type: str int float bool list dict tuple set Any None, list[T], dict[K, T], tuple[T, ...], set[K], Optional[T],
          Union[T, ...], T | T, Literal["a", 1, ...]

The text came from a kernel. Nothing in it is looked up but in the tables below and in the one that the caller gives:
nothing is imported, no attribute is read, nothing is evaluated. Knows no DSPy.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn, Union

from kernel_bridge.errors import SubAgentError

__all__ = ["SignatureField", "SignatureText", "read_signature"]

MOST_TEXT: Final = 16_384  # characters of a signature
MOST_FIELDS: Final = 64
MOST_NAME: Final = 64  # characters of a field's name
MOST_PARTS: Final = 256  # types and values in one signature
DEEPEST: Final = 6  # brackets around a type
_SHOWN: Final = 40  # characters of a text that an error quotes

_TOKEN: Final = re.compile(
    r"""(?P<arrow>->)|(?P<dots>\.\.\.)|(?P<number>-?[0-9]{1,18}(?![\w.]))|(?P<name>[^\W\d]\w*)"""
    r"""|(?P<text>'(?:[^'\\\n]|\\[\\'"nrt])*'|"(?:[^"\\\n]|\\[\\'"nrt])*")|(?P<mark>[\[\],:|])"""
)
_ESCAPE: Final = re.compile(r"\\(.)")
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t"}

_PLAIN: Final[Mapping[str, Any]] = {
    "str": str, "int": int, "float": float, "bool": bool, "list": list, "List": list, "dict": dict, "Dict": dict,
    "tuple": tuple, "Tuple": tuple, "set": set, "Set": set, "Any": Any, "None": type(None), "NoneType": type(None),
}  # fmt: skip
_CONSTANTS: Final[Mapping[str, Any]] = {"True": True, "False": False, "None": None}
_KEYS: Final = (str, int, float, bool)  # what may be a key of a dict, or a member of a set
_GENERIC: Final = frozenset({"list", "List", "dict", "Dict", "tuple", "Tuple", "set", "Set"})
_SPECIAL: Final = frozenset({"Optional", "Union", "Literal"})
_TYPES_SAID: Final = (
    "str, int, float, bool, list[...], dict[..., ...], tuple[...], set[...], Optional[...], Union[...], "
    'Literal["a", "b"], Any, None'
)


@dataclass(frozen=True, slots=True)
class SignatureField:
    """One field."""

    name: str
    annotation: Any  # a type; `str` where none was written


@dataclass(frozen=True, slots=True)
class SignatureText:
    """A signature that was read."""

    inputs: tuple[SignatureField, ...]
    outputs: tuple[SignatureField, ...]


def read_signature(text: str, types: Mapping[str, Any] | None = None) -> SignatureText:
    """Read a signature.

    Args:
        types: further types by name, the host's own.

    Raises:
        SubAgentError: the text is not a signature, or too large; says where, and what is accepted.
    """
    if len(text) > MOST_TEXT:
        raise SubAgentError(f"the signature has {len(text):,} characters; at most {MOST_TEXT:,} are accepted")
    return _Reader(text, types or {}).signature()


class _Reader:
    def __init__(self, text: str, types: Mapping[str, Any]) -> None:
        self._text = text
        self._types = types
        self._at = 0
        self._kind = self._token = ""
        self._parts = 0
        self._next()

    # -- tokens ------------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        if self._at == len(self._text):
            self._kind, self._token = "end", ""
            return
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            self._kind, self._token = "other", self._text[self._at : self._at + _SHOWN]
            return
        self._kind, self._token = found.lastgroup or "", found.group()
        self._at = found.end()

    def _wanted(self, what: str) -> NoReturn:
        came = "its end" if self._kind == "end" else repr(self._token[:_SHOWN])
        raise SubAgentError(
            f'the signature cannot be read: {what} was expected, and {came} came. A signature is "input, ... -> '
            f'output: type, ..."; types are {_TYPES_SAID}'
        )

    def _at_a_token(self) -> bool:
        return self._kind != "end"

    def _is(self, mark: str) -> bool:
        return self._kind == "mark" and self._token == mark

    def _skip(self, mark: str) -> bool:
        if not self._is(mark):
            return False
        self._next()
        return True

    def _take(self, mark: str) -> None:
        if not self._skip(mark):
            self._wanted(repr(mark))

    def _count(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise SubAgentError(f"the types of the signature have more than {MOST_PARTS} parts; simplify them")

    # -- the grammar -------------------------------------------------------------------------------------------------

    def signature(self) -> SignatureText:
        known: set[str] = set()
        inputs = self._fields(known)
        if self._kind != "arrow":
            self._wanted("'->' or ','")
        self._next()
        outputs = self._fields(known)
        if not outputs or self._at_a_token():
            self._wanted("',' or its end" if outputs else "an output field")
        return SignatureText(inputs, outputs)

    def _fields(self, known: set[str]) -> tuple[SignatureField, ...]:
        fields: list[SignatureField] = []
        while self._kind == "name":
            if len(known) == MOST_FIELDS:
                raise SubAgentError(f"the signature has more than {MOST_FIELDS} fields")
            name = _checked_name(self._token)
            if name in known:
                raise SubAgentError(f"the signature has two fields named {name!r}")
            known.add(name)
            self._next()
            annotation = self._type(0) if self._skip(":") else str
            fields.append(SignatureField(name, annotation))
            if not self._skip(","):
                break
        return tuple(fields)

    def _type(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise SubAgentError(f"a type of the signature is nested more than {DEEPEST} deep")
        members = [self._atom(depth)]
        while self._skip("|"):
            members.append(self._atom(depth))
        return members[0] if len(members) == 1 else _union(members)

    def _atom(self, depth: int) -> Any:
        if self._kind != "name":
            self._wanted("a type")
        name = self._token
        self._count()
        self._next()
        if name in self._types:
            return self._types[name]
        if name in _SPECIAL or (name in _GENERIC and self._is("[")):
            return self._built(name, depth)
        if name not in _PLAIN:
            raise SubAgentError(f"the signature names a type {name[:_SHOWN]!r}; the types are {_TYPES_SAID}")
        return _PLAIN[name]

    def _built(self, name: str, depth: int) -> Any:
        self._take("[")
        part: Callable[[], Any] = self._value if name == "Literal" else lambda: self._type(depth + 1)
        parts = [part()]
        open_ended = False
        while self._skip(","):
            if self._kind == "dots" and name.lower() == "tuple" and len(parts) == 1:
                self._next()
                open_ended = True
                break
            parts.append(part())
        self._take("]")
        return _built_type(name, parts, open_ended)

    def _value(self) -> Any:
        self._count()
        if self._kind == "text":
            value: Any = _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), self._token[1:-1])
        elif self._kind == "number":
            value = int(self._token)
        elif self._kind == "name" and self._token in _CONSTANTS:
            value = _CONSTANTS[self._token]
        else:
            self._wanted("a text in quotes, a whole number, True, False or None as a value of Literal")
        self._next()
        return value


def _built_type(name: str, parts: list[Any], open_ended: bool) -> Any:
    counts = {"list": (1, 1), "set": (1, 1), "optional": (1, 1), "dict": (2, 2)}
    least, most = counts.get(name.lower(), (1, MOST_PARTS))
    if not least <= len(parts) <= most:
        raise SubAgentError(f"{name} takes {least} type{'s' if least > 1 else ''} in its brackets, not {len(parts)}")
    if name == "Literal":
        return Literal[tuple(parts)]
    if name in _SPECIAL:
        return _union([*parts, type(None)] if name == "Optional" else parts)
    if name.lower() in ("dict", "set") and parts[0] not in _KEYS:
        raise SubAgentError(f"the keys of a {name.lower()} are str, int, float or bool in a signature")
    if name.lower() == "tuple":
        return tuple[parts[0], ...] if open_ended else tuple[tuple(parts)]
    generic: Any = {"list": list, "set": set, "dict": dict}[name.lower()]
    return generic[tuple(parts)]


def _union(members: list[Any]) -> Any:
    return Union[tuple(members)]  # noqa: UP007 - how many there are is known here only


def _checked_name(name: str) -> str:
    plain = name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name
    if not plain or name.startswith("_") or len(name) > MOST_NAME:
        raise SubAgentError(
            f"{name[:_SHOWN]!r} cannot be the name of a field: names are Python identifiers of at most {MOST_NAME} "
            "characters that do not begin with an underscore"
        )
    return name
