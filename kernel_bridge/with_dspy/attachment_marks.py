"""Texts without the marks between which DSPy's adapters read attachments, such as the URL of an image."""

from __future__ import annotations

from typing import Any, cast

from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER
from dspy.utils.callback import BaseCallback

from kernel_bridge.wire import PagedList

__all__ = ["OnlyText", "only_text", "only_text_in"]

_NO_MARK = CUSTOM_TYPE_START_IDENTIFIER.replace("<<", "< <")


def only_text(text: str) -> str:
    """`text` without the marks between which DSPy's adapters read attachments, such as the URL of an image."""
    return text.replace(CUSTOM_TYPE_START_IDENTIFIER, _NO_MARK)


def only_text_in(value: Any) -> Any:
    """A plain value, the same for all its texts; a `PagedList` whole, for who gets it cannot read more."""
    if isinstance(value, str):
        return only_text(value)
    if isinstance(value, PagedList):
        return only_text_in(value.whole())
    if isinstance(value, list):
        return [only_text_in(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {only_text_in(key): only_text_in(item) for key, item in items}
    return value


class OnlyText(BaseCallback):
    """Keeps what an LM has answered from being an attachment of a later prompt."""

    def on_adapter_parse_end(
        self, call_id: str, outputs: dict[str, Any] | None, exception: BaseException | None = None
    ) -> None:
        """Clean the fields in place, before the program gets them."""
        if isinstance(outputs, dict):
            for name, value in outputs.items():
                outputs[name] = only_text_in(value)
