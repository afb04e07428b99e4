"""An evaluation on its way to other processes: the base, which stays the same for a compile, each run, and each row.

A worker gets the base and a run once and keeps them. LMs travel with their settings, keys included, but without their
histories. DSPy's callbacks do not travel: they are observers of the process that they were made in.
"""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextvars
import hashlib
import io
import pickle
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import cloudpickle
import dspy

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.evaluation.metric import Scorer
from rlmoptimizer.evaluation.row_runner import Detail
from rlmoptimizer.evaluation.workers.tasks import Part
from rlmoptimizer.lms.cache_space import SPACE_SETTING
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.task.dataset import Row

__all__ = ["Base", "RunOptions", "pickled_base", "pickled_row", "pickled_run"]

# Settings that belong to a call under way, to what listens in this process, or to one run.
_OWN: Final = frozenset(
    {
        "trace", "caller_modules", "caller_predict", "send_stream", "stream_listeners", "usage_tracker", "callbacks",
        SPACE_SETTING,
    }
)  # fmt: skip
_ADVICE: Final = (
    "what an executor runs in other processes must pickle with cloudpickle. Make locks, clients and files where they "
    "are used, or leave them out with __getstate__"
)


@dataclass(frozen=True, slots=True)
class Base:
    """What all runs of a compile have in common."""

    program: dspy.Module
    scorer: Scorer
    lm: dspy.BaseLM | None  # runs the program; None: DSPy's settings say
    settings: Mapping[str, Any]  # DSPy's


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What one run has of its own."""

    prompts: Prompts | None  # None: those that the program has
    space: str | None  # of DSPy's cache; None: none
    detail: Detail
    seconds: float | None  # `example_timeout`
    scored: bool  # False: no metric is asked


def pickled_base(
    program: dspy.Module, scorer: Scorer, lm: dspy.BaseLM | None, context: contextvars.Context
) -> Part:
    """Raises `InvalidSetup`, which names what cannot be pickled; DSPy's settings are those of `context`."""
    base = Base(program, scorer, lm, context.copy().run(_settings))
    try:
        return _part(_dumped(base))
    except Exception as error:
        raise _refusal(next(_unportable(base), "the student with the metric"), error) from error


def pickled_run(options: RunOptions) -> Part:
    return _part(_dumped(options))


def pickled_row(row: Row) -> bytes:
    """Raises `InvalidSetup`, which names the example."""
    try:
        return cloudpickle.dumps(row)
    except Exception as error:
        raise _refusal(row.where, error) from error


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, dspy.BaseLM):
            reduced: Any = obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            if isinstance(reduced, tuple) and len(reduced) > 2 and isinstance(reduced[2], dict):
                return (*reduced[:2], {**reduced[2], "history": [], "callbacks": []}, *reduced[3:])
            return reduced
        if isinstance(obj, types.CodeType):  # cloudpickle leaves out the file, which LMs read in tracebacks of tools
            code: Any = self.dispatch_table[types.CodeType](obj)
            return _code_of_file, (obj.co_filename, *code)
        return super().reducer_override(obj)


def _code_of_file(file: str, make: Callable[..., types.CodeType], arguments: tuple[Any, ...]) -> types.CodeType:
    return make(*arguments).replace(co_filename=file)


def _dumped(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _part(pickled: bytes) -> Part:
    return Part(hashlib.blake2b(pickled, digest_size=16).hexdigest(), pickled)


def _settings() -> dict[str, Any]:
    return {name: value for name, value in cast("dict[str, Any]", dspy.settings.copy()).items() if name not in _OWN}


def _unportable(base: Base) -> Iterator[str]:
    """What of it does not pickle, the smallest piece that has a name first."""
    for path, module in base.program.named_sub_modules():
        for name, value in vars(module).items():
            if not isinstance(value, dspy.Module) and not _pickles(value) and name not in ("history", "callbacks"):
                yield f"{name!r} of {path!r} of the student, a {type(value).__name__},"
        if not _pickles(type(module)):
            yield f"the class {type(module).__name__} of {path!r} of the student"
    if not _pickles(base.scorer):
        yield "the metric"
    if not _pickles(base.lm):
        yield "eval_lm"
    for name, value in base.settings.items():
        if not _pickles(value):
            yield f"dspy.settings.{name}, a {type(value).__name__},"


def _pickles(value: Any) -> bool:
    try:
        _dumped(value)
    except Exception:  # noqa: BLE001 - any object may refuse to be pickled, in its own way
        return False
    return True


def _refusal(what: str, error: Exception) -> InvalidSetup:
    return InvalidSetup(
        f"{what} cannot be sent to the executor's workers: {type(error).__name__}: {error}; {_ADVICE}"
    )
