"""The messages of one REPL turn: the whole history, a conversation, or only what is new."""

# DSPy ships no type information; its signatures and adapters are seen here through the few calls below.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import dspy
from dspy.primitives.repl_types import REPLEntry, REPLHistory

from rlmoptimizer.lms.code_field import whole_code
from rlmoptimizer.lms.history_trim import Cut, TrimmedHistory
from rlmoptimizer.lms.person_notes import NOTES_FIELD, PersonNote, notes_first_told, notes_told_by

__all__ = ["ConversationSoFar", "TurnFormat", "history_field"]

Message = dict[str, Any]  # one chat message: role and content

_RESULT = "execution_result"
_RESULT_DESC = "What the REPL printed for the code of your previous answer (not there in the first turn)"
_ITERATION = "iteration"  # the field in which dspy.RLM counts its turns, as "3/20"
_ANSWER = ("reasoning", "code")  # the fields that dspy.RLM asks for in every turn


@dataclass(frozen=True, slots=True)
class ConversationSoFar:
    """What a conversation holds already, so that it is not sent again."""

    instructions: str  # the task it is about
    inputs: Mapping[str, Any]  # what its last turn was given, but for the history
    answers: int  # how many turns of the history it holds, the last one without its result


class TurnFormat:
    """Formats one REPL turn in an adapter's own style; stands in for that adapter's `format`.

    `adapter` names the fields and marks them up; this class only decides which messages there are:

    - `so_far` given: the execution result of its last answer, what else the history holds since, and the inputs that
      changed, as one user message (after a system message when the task is another one);
    - else `conversation`: the first request, then for each earlier turn the model's answer as an assistant message and
      its execution result in the user message that follows, with the `notes` of a person that came then;
    - else: one user message with the whole history, as DSPy does it.

    Output is cut as DSPy cuts it (head and tail kept, length stated), to `max_output_chars`, or, when that is None, to
    what the history itself says. What a `TrimmedHistory` leaves out is left out. A signature without a REPL history is
    formatted as the adapter would.
    """

    def __init__(
        self,
        adapter: dspy.Adapter,
        *,
        conversation: bool,
        continued: bool = False,
        so_far: ConversationSoFar | None = None,
        max_output_chars: int | None = None,
        notes: Sequence[PersonNote] = (),
    ) -> None:
        self._adapter = adapter
        self._notes = notes
        self._conversation = conversation
        # Follow-ups come later or already now, so the instructions describe what they hold.
        self._continued = continued or so_far is not None
        self._so_far = so_far
        self._max_output_chars = max_output_chars

    def adapter(self) -> dspy.Adapter:
        """A copy of the adapter that formats through this object. It does not fall back to JSON by itself."""
        turned = copy.copy(self._adapter)
        vars(turned).update(format=self, parse=self._parse, use_json_adapter_fallback=False)
        return turned

    def _parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        try:
            fields = self._adapter.parse(signature, completion)
            if "code" in fields and (code := whole_code(completion)) is not None:
                fields["code"] = code
            return fields
        except dspy.AdapterParseError:
            raise
        except (ValueError, RecursionError, MemoryError) as error:  # what JSON's parsers raise for an endless "[[["
            name, why = type(self._adapter).__name__, f"It cannot be parsed: {type(error).__name__}"
            raise dspy.AdapterParseError(name, cast("Any", signature), completion, why) from error

    def __call__(self, signature: type[dspy.Signature], demos: list[Any], inputs: dict[str, Any]) -> list[Message]:
        field = history_field(signature)
        history = inputs.get(field) if field is not None else None
        if field is None or not isinstance(history, REPLHistory):
            return self._adapter.format(signature, demos, inputs)
        if self._max_output_chars is not None:
            history = history.model_copy(update={"max_output_chars": self._max_output_chars})
        dialogue = self._conversation and set(_ANSWER) <= set(signature.output_fields)
        if dialogue or self._continued:
            signature = _with_result(signature, field, history_too=not dialogue)
        if self._so_far is not None and history.entries:
            return self._follow_up(signature, field, history, inputs, self._so_far)
        if dialogue:
            return self._dialogue(signature, field, history, demos, inputs)
        return self._adapter.format(signature, demos, {**inputs, field: history})

    def _user(self, signature: type[dspy.Signature], inputs: Mapping[str, Any]) -> Message:
        content = self._adapter.format_user_message_content(signature, dict(inputs), main_request=True)
        return {"role": "user", "content": content}

    def _follow_up(
        self,
        signature: type[dspy.Signature],
        field: str,
        history: REPLHistory,
        inputs: dict[str, Any],
        so_far: ConversationSoFar,
    ) -> list[Message]:
        limit = history.max_output_chars
        new = {name: value for name, value in inputs.items() if name != field and so_far.inputs.get(name) != value}
        answered, *since = history.entries[so_far.answers - 1 :]
        told = [REPLEntry.format_output(answered.output, limit)]
        for index, entry in enumerate(since, start=so_far.answers):
            # The conversation does not hold this turn: told with its code, if an answer of the model's made it.
            told.append(entry.format(index, limit) if entry.code else REPLEntry.format_output(entry.output, limit))
        new[_RESULT] = "\n".join(told)
        user = self._user(signature, new)
        if signature.instructions == so_far.instructions:
            return [user]
        return [{"role": "system", "content": self._adapter.format_system_message(signature)}, user]

    def _dialogue(
        self,
        signature: type[dspy.Signature],
        field: str,
        history: REPLHistory,
        demos: list[Any],
        inputs: dict[str, Any],
    ) -> list[Message]:
        rest = {name: value for name, value in inputs.items() if name not in (field, NOTES_FIELD)}
        trimmed = history if isinstance(history, TrimmedHistory) else TrimmedHistory.of(history, Cut(), None)
        count, begun = len(history.entries), trimmed.cut.turns
        first = {**rest, **notes_told_by(inputs, self._notes, begun), **_iteration(inputs, count - begun)}
        if (beginning := trimmed.beginning()) is not None:
            first[_RESULT] = beginning
        messages = self._adapter.format(signature, demos, first)
        for index, entry in enumerate(history.entries[begun:], start=begun + 1):
            answer = {"reasoning": entry.reasoning, "code": _fenced(entry.code)}
            content = self._adapter.format_assistant_message_content(signature, answer)
            result = trimmed.output_of(index - 1)
            noted = notes_first_told(inputs, self._notes, index)
            following = self._user(signature, {_RESULT: result, **_iteration(inputs, count - index), **noted})
            messages += [{"role": "assistant", "content": content}, following]
        return messages


def history_field(signature: type[dspy.Signature]) -> str | None:
    """The name of the input that holds the REPL history; None when the signature has none."""
    return next((name for name, field in signature.input_fields.items() if field.annotation is REPLHistory), None)


def _with_result(signature: type[dspy.Signature], field: str, *, history_too: bool) -> type[dspy.Signature]:
    """`signature` with a place for an execution result: beside the history, or instead of it."""
    index = list(signature.input_fields).index(field)
    result = dspy.InputField(desc=_RESULT_DESC)
    if history_too:
        return signature.insert(index + 1, _RESULT, result, str)
    return signature.delete(field).insert(index, _RESULT, result, str)


def _iteration(inputs: Mapping[str, Any], back: int) -> dict[str, str]:
    """The count of the turn that was `back` turns ago, as it was sent then. Empty when the turns are not counted.

    Earlier messages must read as they did when they were new, or the provider's prompt cache is lost from there on.
    """
    current, slash, total = str(inputs.get(_ITERATION, "")).partition("/")
    return {_ITERATION: f"{int(current) - back}/{total}"} if slash and current.isdigit() else {}


def _fenced(code: str) -> str:
    # Code that DSPy could not take out of its fences is recorded with them.
    return code if code.lstrip().startswith("```") else f"```python\n{code}\n```"
