"""Exceptions on their way to another process: many cannot be pickled, or cannot be unpickled again."""

# DSPy and cloudpickle ship no type information.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import itertools
import pickle
from dataclasses import dataclass
from typing import Any, cast

import cloudpickle
from dspy.utils.exceptions import DSPyError

from rlmoptimizer.lms.failures import causes

__all__ = ["PortableError", "WorkerError", "portable"]


class WorkerError(Exception):
    """Stands for an exception of a worker that could not travel; its text begins with the other's class."""

    status: int | None = None  # of HTTP


class _WorkerTimeout(WorkerError, TimeoutError):
    pass


class _WorkerConnectionError(WorkerError, ConnectionError):
    pass


@dataclass(frozen=True, slots=True)
class PortableError:
    """An exception and its causes, the nearest first; each was unpickled once before it was sent."""

    pickled: tuple[bytes, ...]

    def error(self) -> BaseException:
        """As near to what was raised as can be had here."""
        chain = [_unpickled(one) for one in self.pickled]
        for error, cause in itertools.pairwise(chain):
            error.__cause__ = cause
        return chain[0]


def portable(error: BaseException) -> PortableError:
    return PortableError(tuple(map(_pickled, causes(error))))


def _pickled(error: BaseException) -> bytes:
    try:
        pickled = cloudpickle.dumps(error)
        again = pickle.loads(pickled)
        if type(again) is type(error) and str(again) == str(error):
            return pickled
    except Exception:  # noqa: BLE001 - any exception may refuse, in its own way
        pass
    return pickle.dumps(_stand_in(error))


def _stand_in(error: BaseException) -> BaseException:
    text = str(error)
    if isinstance(error, DSPyError):  # its class says which kind of failure it is
        known = ("code", "model", "provider", "provider_code", "status", "request_id", "retry_after")
        facts = {name: value for name in known if isinstance(value := getattr(error, name, None), (str, int, float))}
        of_dspy = next(kind for kind in type(error).__mro__ if kind.__module__.startswith("dspy."))
        stand_in: Any = cast("Any", of_dspy).__new__(of_dspy)
        stand_in.args = (text,)
        vars(stand_in).update({**dict.fromkeys(known), **facts, "message": text})
        return cast("BaseException", stand_in)
    kinds = {TimeoutError: _WorkerTimeout, ConnectionError: _WorkerConnectionError}
    kind = next((stands for of, stands in kinds.items() if isinstance(error, of)), WorkerError)
    stand_in = kind(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    status: Any = getattr(error, "status", None) or getattr(error, "status_code", None)
    if isinstance(status, int):
        stand_in.status = status
    return stand_in


def _unpickled(pickled: bytes) -> BaseException:
    try:
        error = pickle.loads(pickled)
    except Exception as refused:  # noqa: BLE001 - a class of the worker's that is not here
        return WorkerError(f"an exception that does not unpickle here: {type(refused).__name__}: {refused}")
    return error if isinstance(error, BaseException) else WorkerError(f"a {type(error).__name__} in its place")
