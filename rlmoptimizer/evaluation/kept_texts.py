"""DSPy's own adapters, with what they make anew for every example kept. What is sent and what is read stay the same.

An adapter writes the system message from the signature alone, and wraps the values of the inputs in texts that are the
same for each example. Making these is a third of what DSPy's part of an LM call costs. An answer is read with the
output fields of the signature, which DSPy makes anew each time it looks at them. Only public methods are stood in for,
on a copy of the adapter, and only where they are DSPy's. The copy stands in DSPy's settings only while a step is
called, so a program that looks there finds what it or its user has set.
"""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, get_args

import dspy
from dspy.utils.exceptions import AdapterParseError

__all__ = ["with_kept_texts"]

_MODULE: Final = "dspy.adapters."
_WRITTEN_BY: Final = (  # methods of an adapter that have a part in what is kept
    "format",
    "format_system_message",
    "format_field_description",
    "format_field_structure",
    "format_task_description",
    "format_user_message_content",
    "format_assistant_message_content",
    "format_field_with_value",
    "user_message_output_requirements",
)
_READ_AGAIN: Final = frozenset({dspy.ChatAdapter, dspy.JSONAdapter})  # look at the output fields for each of them
_MOST_SIGNATURES: Final = 64  # a program may make a new one for each call
_MOST_TEMPLATES: Final = 64  # of one signature
_PROBE: Final = ' \t"{0}" <a>&amp; %s \\n \n\n«»\u2028 [[ ## b ## ]] </b> \n '  # what an adapter might escape or cut

_Template: TypeAlias = "tuple[str, ...]"  # the pieces before, between and after the values


def with_kept_texts(adapter: Any) -> Any:
    """A copy of an adapter that sends the same with less work, or the adapter itself. None: DSPy's default one.

    The copy is thread-safe, and follows changes of signatures. Adapters of other people's classes are given back.
    """
    own: Any = dspy.ChatAdapter() if adapter is None else adapter
    if not type(own).__module__.startswith(_MODULE) or not all(_is_dspys(own, name) for name in _WRITTEN_BY):
        return own
    kept, texts = copy.copy(own), _KeptTexts(own)
    kept.format_system_message = texts.format_system_message
    kept.format_user_message_content = texts.format_user_message_content
    kept.format_assistant_message_content = texts.format_assistant_message_content
    if type(own) in _READ_AGAIN and _is_dspys(own, "parse"):
        kept.parse = _Parser(own)
    return kept


def _is_dspys(adapter: Any, name: str) -> bool:
    """Whether nobody has replaced this method, in the class or in the object. Some adapters lack some."""
    method = getattr(type(adapter), name, None)
    return name not in vars(adapter) and (method is None or method.__module__.startswith(_MODULE))


@dataclass(slots=True)
class _Known:
    """A signature, and what was written for it."""

    signature: Any
    state: Any  # what its texts are made of
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    system: str | None = None  # None: it was seen once only, and may be one that is made for each call
    templates: dict[tuple[Any, ...], _Template | None] = field(default_factory=dict[Any, Any])


class _KeptTexts:
    """Stands in for three methods of one adapter. Thread-safe: at worst two threads write the same."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter
        self._known: dict[int, _Known] = {}  # by the identity of the signature, which it holds

    def __reduce__(self) -> tuple[Any, ...]:
        return _KeptTexts, (self._adapter,)

    def format_system_message(self, signature: Any) -> str:
        known, state = self._known.get(id(signature)), _state(signature)
        if known is None or known.signature is not signature or known.state != state:
            text = self._adapter.format_system_message(signature)
            if not any(map(_describes_itself, (field.annotation for field in signature.model_fields.values()))):
                if len(self._known) >= _MOST_SIGNATURES:
                    self._known.clear()
                self._known[id(signature)] = _Known(
                    signature, state, tuple(signature.input_fields), tuple(signature.output_fields)
                )
            return text
        if (text := known.system) is None:
            known.system = text = self._adapter.format_system_message(signature)
        return text

    def format_user_message_content(
        self, signature: Any, inputs: Any, prefix: str = "", suffix: str = "", main_request: bool = False
    ) -> str:
        def write(inputs: Any) -> str:
            return self._adapter.format_user_message_content(signature, inputs, prefix, suffix, main_request)

        known = self._templates_of(signature)
        if known is None:
            return write(inputs)
        given = {name: inputs[name] for name in known.inputs if name in inputs}
        return _written(known, given, ("user", *given, prefix, suffix, main_request), write) or write(inputs)

    def format_assistant_message_content(
        self, signature: Any, outputs: Any, missing_field_message: str | None = None
    ) -> str:
        def write(outputs: Any) -> str:
            return self._adapter.format_assistant_message_content(signature, outputs, missing_field_message)

        known = self._templates_of(signature)
        if known is None:
            return write(outputs)
        given = {name: outputs.get(name, missing_field_message) for name in known.outputs}
        return _written(known, given, ("assistant", *given), write) or write(outputs)

    def _templates_of(self, signature: Any) -> _Known | None:
        """Asked after the system message, so the signature is as it was then."""
        known = self._known.get(id(signature))
        return known if known is not None and known.signature is signature and known.system is not None else None


class _Parser:
    """Stands in for `parse` of one adapter: the output fields of the signature are made once for each answer."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def __call__(self, signature: Any, completion: str) -> dict[str, Any]:
        # Callbacks get the signature, and so do errors: there it is the signature itself.
        if not dspy.settings.callbacks and not self._adapter.callbacks:
            try:
                return self._adapter.parse(_OutputFields(signature), completion)
            except AdapterParseError as error:
                error.signature = signature
                raise
        return self._adapter.parse(signature, completion)


class _OutputFields:
    """A signature whose output fields stay as they are."""

    def __init__(self, signature: Any) -> None:
        self._signature = signature
        self.output_fields = signature.output_fields

    def __getattr__(self, name: str) -> Any:
        return getattr(self._signature, name)


def _written(known: _Known, given: Mapping[str, Any], key: tuple[Any, ...], write: Callable[[Any], str]) -> str | None:
    """What `write` makes of these values; None: they are not all texts, or it has to write by itself."""
    if not all(type(value) is str for value in given.values()):
        return None
    if key not in known.templates:
        if len(known.templates) >= _MOST_TEMPLATES:
            return None
        known.templates[key] = _learned(tuple(given), write)
    template = known.templates[key]
    return None if template is None else _filled(template, tuple(given.values()))


def _learned(names: Sequence[str], write: Callable[[Any], str]) -> _Template | None:
    """The text around the values; None: `write` does more to a value than put it there."""
    marks = [secrets.token_hex(16) for _ in names]
    rest, pieces = write(dict(zip(names, marks, strict=True))), list[str]()
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found:
            return None
        pieces.append(piece)
    template = (*pieces, rest)
    probes = [f"{number}{_PROBE}{number}" if number % 2 else _PROBE for number in range(len(names))]
    for values in (probes, probes[::-1], [""] * len(names)):
        if _filled(template, values) != write(dict(zip(names, values, strict=True))):
            return None
    return template


def _filled(template: _Template, values: Sequence[str]) -> str:
    text = "".join(part for pair in zip(template, (*values, ""), strict=True) for part in pair)
    return text if template[0] and template[-1] else text.strip()  # a value at an end is stripped with the text


def _state(signature: Any) -> Any:
    """What a signature's texts are made of; any of it may be changed in place."""
    fields = signature.model_fields.items()
    return signature.__doc__, [
        (name, one, one.annotation, dict(one.json_schema_extra or ()), list(one.metadata)) for name, one in fields
    ]


def _describes_itself(annotation: Any) -> bool:
    """Whether there is a type in it that DSPy asks for its description, and that is not DSPy's."""
    return any(
        isinstance(kind, type) and issubclass(kind, dspy.Type) and not kind.__module__.startswith("dspy.")
        for kind in _types_in(annotation)
    )


def _types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _types_in(part)
