"""DSPy as the guard of its facade needs it."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

from dspy.adapters.types.tool import Tool
from dspy.dsp.utils.settings import settings
from dspy.signatures import field as dspy_field
from dspy.signatures.signature import Signature
from dspy.utils.constants import IS_TYPE_UNDEFINED

from kernel_bridge.sub_agents.signature_text import SignatureText
from kernel_bridge.text import error_text
from kernel_bridge.with_dspy.attachment_marks import OnlyText, only_text, only_text_in
from kernel_bridge.with_dspy.refusals import LONGEST_ANSWER, refusal

__all__ = ["RealDSPy"]

_input_field = cast("Callable[..., Any]", cast("Any", dspy_field).InputField)
_output_field = cast("Callable[..., Any]", cast("Any", dspy_field).OutputField)


class RealDSPy:
    """See `DSPyBinding`."""

    # What pydantic and DSPy have on every signature.
    taken_names = frozenset(
        name for part in (Signature, type(Signature)) for name in dir(part) if not name.startswith("_")
    )

    def signature(self, read: SignatureText, instructions: str | None) -> Any:
        # Inputs count as untyped, so that DSPy does not log the values that it finds to be of another type.
        untyped = {IS_TYPE_UNDEFINED: True}
        fields: dict[str, Any] = {made.name: (made.annotation, _input_field(**untyped)) for made in read.inputs}
        fields.update({made.name: (made.annotation, _output_field()) for made in read.outputs})
        return cast("Any", Signature)(fields, instructions)

    def tool(self, tool: Any) -> Any:
        made: Any = tool if isinstance(tool, Tool) else Tool(tool)
        parts = {name: getattr(made, name) for name in ("name", "desc", "args", "arg_types", "arg_desc")}
        return cast("Any", _SubAgentTool)(made.func, **parts)

    def clean(self, text: str) -> str:
        return only_text(text).encode("utf-8", "replace").decode("utf-8")

    def around_call(self) -> AbstractContextManager[Any]:
        now = cast("Any", settings)
        # The trace that DSPy keeps by default holds the last 10,000 predictors with their inputs.
        kept = contextvars.Context().run(getattr, now, "trace")
        untraced = {"trace": None} if now.trace is kept else {}
        return now.context(callbacks=[*(now.callbacks or []), OnlyText()], **untraced)

    def refusal(self, error: BaseException, kind: str) -> Exception:
        return refusal(error, kind)


class _SubAgentTool(Tool):
    """A tool whose errors, also those of its arguments, are a text, and whose texts are texts only.

    DSPy would tell a sub-agent's LM the traceback, with paths and source lines of the host.
    """

    def __call__(self, /, **kwargs: Any) -> Any:  # a model's argument may be called anything
        try:
            return only_text_in(cast("Any", super()).__call__(**kwargs))
        except Exception as error:  # noqa: BLE001 - foreign code
            return _failure_for_lm(error)

    async def acall(self, /, **kwargs: Any) -> Any:
        try:
            return only_text_in(await cast("Any", super()).acall(**kwargs))
        except Exception as error:  # noqa: BLE001 - foreign code
            return _failure_for_lm(error)


def _failure_for_lm(error: Exception) -> str:
    return only_text(f"Failed: {type(error).__name__}: {error_text(error, LONGEST_ANSWER)}")
