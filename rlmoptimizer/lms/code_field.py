"""The code in a root LM's answer, whole, also where a text in it holds the mark of a field or of a fence. No dspy.

The agent writes prompts, so its code quotes what stands around them: a line `[[ ## answer ## ]]`, or three backticks.
DSPy takes the first for the beginning of the next field and the second for the end of the code.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["whole_code"]

_CODE: Final = re.compile(r"^[ \t]*\[\[ ## code ## \]\][ \t]*\n\s*```(?:python|py)?[ \t]*\n", re.MULTILINE)
_END: Final = re.compile(r"^```[ \t]*\n?(?=\s*(?:\[\[ ## completed ## \]\]|\Z))", re.MULTILINE)
_RAW_TEXT: Final = re.compile(r"\b(?:r|rb|br|rf|fr)['\"]", re.IGNORECASE)
_TICKS: Final = "```"


def whole_code(answer: str) -> str | None:
    """The fenced code of an answer in ChatAdapter's form, in a fence of its own; None: it has no such field.

    It ends at the first closing fence after which the answer ends. Three backticks inside are written as escapes, which
    mean the same in every text but a raw one; where there is a raw one they stay.
    """
    begun = _CODE.search(answer)
    ended = None if begun is None else _END.search(answer, begun.end())
    if begun is None or ended is None:
        return None
    code = answer[begun.end() : ended.start()].rstrip()
    if _TICKS in code and not _RAW_TEXT.search(code):
        code = code.replace(_TICKS, r"\x60" * 3)
    return f"{_TICKS}python\n{code}\n{_TICKS}"
